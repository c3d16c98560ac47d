// Parameters from wire bytes to SQLite, rows from SQLite to wire bytes (client-protocol §2 and §4). Knows encodings;
// does not know messages other than ROWS, views or transactions. Never reads outside the bytes it is given.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "sqlite3.h"

namespace tuple {

// Bytes that grow. A growth that fails (no memory, above kBytesMax) is remembered, and later appends do nothing.
class Buffer {
 public:
  // One ROWS message: far above any sensible row, far below what a length in words can say.
  static constexpr size_t kBytesMax = 1u << 30;

  Buffer() = default;
  ~Buffer() { std::free(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  const uint8_t* data() const { return data_; }
  uint8_t* data() { return data_; }
  size_t size() const { return size_; }
  bool failed() const { return failed_; }
  void Clear() {
    size_ = 0;
    failed_ = false;
  }
  void Shrink(size_t bytes_max);  // gives memory back if there is much more than this

  // nullptr: failed.
  uint8_t* Extend(size_t bytes) {
    if (failed_ || (bytes > capacity_ - size_ && !Grow(bytes))) return nullptr;
    uint8_t* place = data_ + size_;
    size_ += bytes;
    return place;
  }
  void AppendWord(uint64_t word) {
    uint8_t* place = Extend(8);
    if (place != nullptr) std::memcpy(place, &word, 8);
  }
  void Append(const void* bytes, size_t count) {
    uint8_t* place = Extend(count);
    if (place != nullptr && count > 0) std::memcpy(place, bytes, count);
  }
  void AppendText(const char* text, size_t bytes);         // NUL and zeros up to the next word
  void AppendBlob(const void* blob, size_t bytes);         // length, bytes, zeros up to the next word

 private:
  bool Grow(size_t bytes);

  uint8_t* data_ = nullptr;
  size_t size_ = 0;
  size_t capacity_ = 0;
  bool failed_ = false;
};

// Binds the tuple at `offset` of a request's body (§4.2); offset == bytes: there is none. The first `skip` values belong
// to earlier statements; parameters without a value become NULL; values without a parameter are ignored.
// Returns SQLITE_OK with the number of values in the tuple, kMalformed, or SQLite's error.
inline constexpr int kMalformed = -1;
int Bind(sqlite3_stmt* statement, const uint8_t* body, size_t bytes, size_t offset, int schema, uint32_t skip,
         uint32_t* values);

// What does not change between the rows of a result.
class Columns {
 public:
  // Reads names and declared types. They stay until the statement is prepared again by SQLite.
  void Load(sqlite3_stmt* statement);
  int count() const { return static_cast<int>(kinds_.size()); }
  void AppendPrefix(Buffer* out) const { out->Append(prefix_.data(), prefix_.size()); }  // count and names (§4.3)
  // False: SQLite has no memory to hand out a value.
  bool AppendRow(sqlite3_stmt* statement, Buffer* out) const;

 private:
  enum class Kind : uint8_t { kPlain, kDate, kBoolean };
  static Kind KindOf(const char* declared_type);

  std::vector<Kind> kinds_;
  Buffer prefix_;
};

// Header of a message (§3): 0 words of the body, uint32 · 4 type · 5 schema · 6 zero, uint16.
inline constexpr size_t kHeaderBytes = 8;
inline constexpr uint8_t kRowsType = 7;
inline constexpr uint64_t kDoneMarker = 0xffffffffffffffffull;
inline constexpr uint64_t kPartMarker = 0xeeeeeeeeeeeeeeeeull;
void BeginRows(Buffer* out);                    // makes room for the header
void EndRows(Buffer* out, uint64_t marker);     // appends the marker and fills the header in

}  // namespace tuple
