// SQLite's write-ahead log and wal-index, as far as the VFS reads and writes them itself (SQLite's file format
// documentation, "WAL-mode File Format"). Knows layouts and nothing of databases, locks or threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace wal {

inline constexpr uint32_t kPageBytes = 4096;  // the only page size there is (raft-wire §5.1)
inline constexpr uint32_t kHeaderBytes = 32;  // of the WAL file; only SQLite writes it, nobody reads its fields here
inline constexpr uint32_t kFrameHeaderBytes = 24;
inline constexpr uint32_t kFrameBytes = kFrameHeaderBytes + kPageBytes;

// Frame header: 0 page number · 4 database size in pages if this frame commits, else 0 · 8 salts · 16 checksums.
inline constexpr uint32_t kFrameSizeOffset = 4;
inline constexpr uint32_t kFrameSaltOffset = 8;
inline constexpr uint32_t kFrameChecksumOffset = 16;

inline uint32_t GetBigEndian32(const uint8_t* p) {
  return static_cast<uint32_t>(p[0]) << 24 | static_cast<uint32_t>(p[1]) << 16 | static_cast<uint32_t>(p[2]) << 8 | p[3];
}

inline void PutBigEndian32(uint8_t* p, uint32_t value) {
  p[0] = static_cast<uint8_t>(value >> 24);
  p[1] = static_cast<uint8_t>(value >> 16);
  p[2] = static_cast<uint8_t>(value >> 8);
  p[3] = static_cast<uint8_t>(value);
}

// The wal-index is an array of 32 KiB regions in memory that all connections share. Region 0:
//   0 header · 48 header again · 96 checkpoint information · 136 page numbers of frames 1…4062 · 16384 hash table
// Later regions: 0 page numbers of the next 4096 frames · 16384 hash table.
inline constexpr uint32_t kRegionBytes = 32768;
inline constexpr uint32_t kRegionFrames = 4096;
inline constexpr uint32_t kFirstRegionFrames = 4062;
inline constexpr uint32_t kIndexHeaderBytes = 136;
inline constexpr uint32_t kHashOffset = 16384;
inline constexpr uint32_t kHashSlots = 8192;
inline constexpr uint32_t kReadMarks = 5;
inline constexpr uint32_t kReadMarkNotUsed = 0xffffffff;

// One of the two copies of the header. A reader copies it when its transaction begins; it is the whole snapshot, and
// has the same bytes as SQLite's sqlite3_snapshot.
struct IndexHeader {
  uint32_t version;
  uint32_t unused;
  uint32_t change;  // counts transactions
  uint8_t is_init;
  uint8_t big_endian_checksum;
  uint16_t page_bytes;
  uint32_t max_frame;  // last frame of the last committed transaction
  uint32_t pages;      // database size
  uint32_t frame_checksum[2];
  uint32_t salt[2];
  uint32_t checksum[2];  // of the fields before
};
static_assert(sizeof(IndexHeader) == 48);
inline constexpr uint32_t kIndexVersion = 3007000;

struct CheckpointInfo {
  uint32_t backfilled;  // stays 0: SQLite then never restarts the log by itself
  uint32_t read_mark[kReadMarks];
  uint8_t lock[8];
  uint32_t backfill_attempted;  // stays 0: any snapshot of this log may be opened
  uint32_t unused;
};
static_assert(sizeof(CheckpointInfo) == 40);

// Slots of xShmLock.
inline constexpr int kLocks = 8;
inline constexpr int kWriteLock = 0;
inline constexpr int kCheckpointLock = 1;
inline constexpr int kRecoverLock = 2;
inline constexpr int kFirstReadLock = 3;

inline void SetChecksum(IndexHeader* header) {
  uint32_t words[(sizeof(IndexHeader) - 8) / 4];
  std::memcpy(words, header, sizeof words);
  uint32_t s1 = 0, s2 = 0;
  for (size_t i = 0; i < sizeof words / 4; i += 2) {
    s1 += words[i] + s2;
    s2 += words[i + 1] + s1;
  }
  header->checksum[0] = s1;
  header->checksum[1] = s2;
}

// The region that holds a frame (numbered from 1), and the frame's place in it (numbered from 0).
inline uint32_t RegionOf(uint32_t frame) { return (frame + kRegionFrames - kFirstRegionFrames - 1) / kRegionFrames; }
inline uint32_t FramesBefore(uint32_t region) {
  return region == 0 ? 0 : kFirstRegionFrames + (region - 1) * kRegionFrames;
}

struct Region {
  explicit Region(uint8_t* base, uint32_t number)
      : page_numbers(reinterpret_cast<uint32_t*>(base + (number == 0 ? kIndexHeaderBytes : 0))),
        hash(reinterpret_cast<uint16_t*>(base + kHashOffset)),
        capacity(number == 0 ? kFirstRegionFrames : kRegionFrames),
        frames_before(FramesBefore(number)) {}

  uint32_t* page_numbers;
  uint16_t* hash;  // 0: free, else the frame's place in this region + 1; open addressing
  uint32_t capacity;
  uint32_t frames_before;
};

inline uint32_t HashOf(uint32_t page_number) { return (page_number * 383) & (kHashSlots - 1); }
inline uint32_t NextHash(uint32_t hash) { return (hash + 1) & (kHashSlots - 1); }

}  // namespace wal
