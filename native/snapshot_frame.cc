#include "snapshot_frame.h"

#include <lz4frame.h>

#include <cassert>
#include <cstring>
#include <new>

namespace {

LZ4F_preferences_t Preferences(uint64_t content_bytes) {
  LZ4F_preferences_t preferences;
  memset(&preferences, 0, sizeof preferences);
  preferences.frameInfo.blockSizeID = LZ4F_max64KB;
  preferences.frameInfo.blockMode = LZ4F_blockLinked;
  preferences.frameInfo.contentChecksumFlag = LZ4F_contentChecksumEnabled;
  preferences.frameInfo.contentSize = content_bytes;
  // Faster than LZ4's default, for a few per cent of size: a snapshot must not cost what the transactions cost.
  preferences.compressionLevel = -8;
  return preferences;
}

// The four bytes 04 22 4D 18 that open a frame.
constexpr uint8_t kMagic[4] = {0x04, 0x22, 0x4D, 0x18};

}  // namespace

struct SnapshotFrameWriter::State {
  LZ4F_cctx* context = nullptr;
  LZ4F_preferences_t preferences{};
  uint64_t expected = 0;
  uint64_t seen = 0;
  ~State() { LZ4F_freeCompressionContext(context); }
};

SnapshotFrameWriter::SnapshotFrameWriter(uint64_t content_bytes) : state_(new State) {
  assert(content_bytes > 0);
  state_->expected = content_bytes;
  state_->preferences = Preferences(content_bytes);
  if (LZ4F_isError(LZ4F_createCompressionContext(&state_->context, LZ4F_VERSION))) throw std::bad_alloc();
}

SnapshotFrameWriter::~SnapshotFrameWriter() = default;

size_t SnapshotFrameWriter::Bound(size_t bytes) {
  const LZ4F_preferences_t preferences = Preferences(1);
  return LZ4F_compressBound(bytes, &preferences) + LZ4F_HEADER_SIZE_MAX;
}

int64_t SnapshotFrameWriter::Result(size_t code) {
  if (!LZ4F_isError(code)) return static_cast<int64_t>(code);
  error_ = LZ4F_getErrorName(code);
  return -1;
}

int64_t SnapshotFrameWriter::Begin(uint8_t* target, size_t room) {
  return Result(LZ4F_compressBegin(state_->context, target, room, &state_->preferences));
}

int64_t SnapshotFrameWriter::Update(const uint8_t* piece, size_t bytes, uint8_t* target, size_t room) {
  state_->seen += bytes;
  if (state_->seen > state_->expected) {
    error_ = "more content than announced";
    return -1;
  }
  return Result(LZ4F_compressUpdate(state_->context, target, room, piece, bytes, nullptr));
}

int64_t SnapshotFrameWriter::End(uint8_t* target, size_t room) {
  if (state_->seen != state_->expected) {
    error_ = "less content than announced";
    return -1;
  }
  return Result(LZ4F_compressEnd(state_->context, target, room, nullptr));
}

struct SnapshotFrameReader::State {
  LZ4F_dctx* context = nullptr;
  ~State() { LZ4F_freeDecompressionContext(context); }
};

SnapshotFrameReader::SnapshotFrameReader() : state_(new State) {}

SnapshotFrameReader::~SnapshotFrameReader() = default;

bool SnapshotFrameReader::Sniff(const uint8_t* head, size_t bytes) {
  is_frame_ = bytes >= sizeof kMagic && memcmp(head, kMagic, sizeof kMagic) == 0;
  if (!is_frame_) return true;
  // A context of its own: the one that decodes sees the header again.
  State sniff;
  if (LZ4F_isError(LZ4F_createDecompressionContext(&sniff.context, LZ4F_VERSION)) ||
      LZ4F_isError(LZ4F_createDecompressionContext(&state_->context, LZ4F_VERSION)))
    throw std::bad_alloc();
  LZ4F_frameInfo_t info;
  memset(&info, 0, sizeof info);
  const size_t code = LZ4F_getFrameInfo(sniff.context, &info, head, &bytes);
  if (LZ4F_isError(code)) {
    error_ = LZ4F_getErrorName(code);
    return false;
  }
  content_bytes_ = info.contentSize;
  return true;
}

bool SnapshotFrameReader::Update(const uint8_t* source, size_t bytes, uint8_t* target, size_t room, Step* step) {
  *step = {0, 0};
  if (!is_frame_) {
    const size_t n = bytes < room ? bytes : room;
    memcpy(target, source, n);
    *step = {n, n};
    return true;
  }
  if (complete_) {
    if (bytes == 0) return true;
    error_ = "bytes after the end of the frame";
    return false;
  }
  size_t consumed = bytes;
  size_t produced = room;
  const size_t hint = LZ4F_decompress(state_->context, target, &produced, source, &consumed, nullptr);
  if (LZ4F_isError(hint)) {
    error_ = LZ4F_getErrorName(hint);
    return false;
  }
  complete_ = hint == 0;
  *step = {consumed, produced};
  return true;
}
