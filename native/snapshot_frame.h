// Snapshot files as LZ4 frames (disk-format §7), in bounded pieces. Knows frames; does not know files or what is inside.
//
// Written: linked blocks of 64 KiB, content size and content checksum present, no block checksums: the parameters of C
// dqlite, whose readers demand the content size. Read: any legal frame, or raw bytes, told apart by the magic number.
// The owner calls from one thread at a time; no buffer is kept after a call.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

class SnapshotFrameWriter {
 public:
  // `content_bytes` > 0 must be what the pieces add up to.
  explicit SnapshotFrameWriter(uint64_t content_bytes);
  ~SnapshotFrameWriter();
  SnapshotFrameWriter(const SnapshotFrameWriter&) = delete;
  SnapshotFrameWriter& operator=(const SnapshotFrameWriter&) = delete;

  // Room that `target` needs for a piece of `bytes`, header and trailer included.
  static size_t Bound(size_t bytes);
  // Each returns the bytes written to `target`, or -1 with error() saying why.
  int64_t Begin(uint8_t* target, size_t room);
  int64_t Update(const uint8_t* piece, size_t bytes, uint8_t* target, size_t room);
  int64_t End(uint8_t* target, size_t room);
  const std::string& error() const { return error_; }

 private:
  struct State;
  int64_t Result(size_t code);
  std::unique_ptr<State> state_;
  std::string error_;
};

class SnapshotFrameReader {
 public:
  SnapshotFrameReader();
  ~SnapshotFrameReader();
  SnapshotFrameReader(const SnapshotFrameReader&) = delete;
  SnapshotFrameReader& operator=(const SnapshotFrameReader&) = delete;

  struct Step {
    size_t consumed;
    size_t produced;
  };
  // The file's first bytes, all of them if it has less than kSniffBytes. False: a frame whose header is damaged.
  bool Sniff(const uint8_t* head, size_t bytes);
  bool is_frame() const { return is_frame_; }
  // Uncompressed size as the header says; 0: it does not say (or raw).
  uint64_t content_bytes() const { return content_bytes_; }
  // Takes from `source` what it can and fills `target`. False: damaged, error() says how. Bytes after the frame's end
  // are damage too.
  bool Update(const uint8_t* source, size_t bytes, uint8_t* target, size_t room, Step* step);
  // True: the frame is complete and its checksum was right; or raw.
  bool is_complete() const { return !is_frame_ || complete_; }
  const std::string& error() const { return error_; }

  static constexpr size_t kSniffBytes = 19;  // the longest frame header

 private:
  struct State;
  std::unique_ptr<State> state_;
  bool is_frame_ = false;
  bool complete_ = false;
  uint64_t content_bytes_ = 0;
  std::string error_;
};
