// See tuple.h.
#include "tuple.h"

namespace tuple {

namespace {

// Value type codes (client-protocol §4.1).
enum Code : uint8_t {
  kInteger = 1,
  kFloat = 2,
  kText = 3,
  kBlob = 4,
  kNull = 5,
  kUnixTime = 9,
  kIso8601 = 10,
  kBoolean = 11,
};

constexpr size_t Pad8(size_t n) { return (n + 7) & ~static_cast<size_t>(7); }

uint64_t GetWord(const uint8_t* p) {
  uint64_t word;
  std::memcpy(&word, p, 8);
  return word;
}

}  // namespace

// ------------------------------------------------------------------------------------------------- buffer

bool Buffer::Grow(size_t bytes) {
  if (bytes > kBytesMax - size_) {
    failed_ = true;
    return false;
  }
  size_t capacity = capacity_ < 8192 ? 8192 : capacity_ * 2;
  if (capacity < size_ + bytes) capacity = size_ + bytes;
  if (capacity > kBytesMax) capacity = kBytesMax;
  void* data = std::realloc(data_, capacity);
  if (data == nullptr) {
    failed_ = true;
    return false;
  }
  data_ = static_cast<uint8_t*>(data);
  capacity_ = capacity;
  return true;
}

void Buffer::Shrink(size_t bytes_max) {
  if (capacity_ <= 2 * bytes_max) return;
  std::free(data_);
  data_ = nullptr;
  size_ = capacity_ = 0;
}

void Buffer::AppendText(const char* text, size_t bytes) {
  const size_t padded = Pad8(bytes + 1);
  uint8_t* place = Extend(padded);
  if (place == nullptr) return;
  std::memset(place + padded - 8, 0, 8);
  if (bytes > 0) std::memcpy(place, text, bytes);
}

void Buffer::AppendBlob(const void* blob, size_t bytes) {
  AppendWord(bytes);
  const size_t padded = Pad8(bytes);
  uint8_t* place = Extend(padded);
  if (place == nullptr || padded == 0) return;
  std::memset(place + padded - 8, 0, 8);
  std::memcpy(place, blob, bytes);
}

// ------------------------------------------------------------------------------------------------- parameters

// Schema 0: 0 count, uint8 · 1 codes, one byte each · zeros to 8 · values.
// Schema 1: 0 count, uint32 · 4 codes · zeros to 8 · values.
int Bind(sqlite3_stmt* statement, const uint8_t* body, size_t bytes, size_t offset, int schema, uint32_t skip,
         uint32_t* values) {
  *values = 0;
  if (offset > bytes) return kMalformed;
  const int parameters = sqlite3_bind_parameter_count(statement);
  if (parameters > 0) sqlite3_clear_bindings(statement);
  if (offset == bytes) return SQLITE_OK;

  const uint8_t* p = body + offset;
  size_t left = bytes - offset;
  const size_t count_bytes = schema == 0 ? 1 : 4;
  if (left < count_bytes) return kMalformed;
  uint32_t count = p[0];
  if (schema != 0) std::memcpy(&count, p, 4);
  if (count > left) return kMalformed;  // a code each: also keeps the sum below from overflowing
  const size_t header = Pad8(count_bytes + count);
  if (header > left) return kMalformed;
  const uint8_t* codes = p + count_bytes;
  p += header;
  left -= header;

  for (uint32_t i = 0; i < count; i++) {
    // Every value takes at least a word.
    if (left < 8) return kMalformed;
    size_t size = 8;
    const uint64_t word = GetWord(p);
    const bool wanted = i >= skip && i - skip < static_cast<uint32_t>(parameters);
    const int index = static_cast<int>(i - skip) + 1;
    int rc = SQLITE_OK;
    switch (codes[i]) {
      case kInteger:
        if (wanted) rc = sqlite3_bind_int64(statement, index, static_cast<sqlite3_int64>(word));
        break;
      case kBoolean:
        if (wanted) rc = sqlite3_bind_int64(statement, index, word != 0);
        break;
      case kFloat: {
        double value;
        std::memcpy(&value, &word, 8);
        if (wanted) rc = sqlite3_bind_double(statement, index, value);
        break;
      }
      case kText:
      case kIso8601: {
        const void* nul = std::memchr(p, 0, left);
        if (nul == nullptr) return kMalformed;
        const size_t length = static_cast<size_t>(static_cast<const uint8_t*>(nul) - p);
        size = Pad8(length + 1);
        if (size > left) return kMalformed;
        if (wanted)
          rc = sqlite3_bind_text64(statement, index, reinterpret_cast<const char*>(p), length, SQLITE_TRANSIENT,
                                   SQLITE_UTF8);
        break;
      }
      case kBlob: {
        if (word > left - 8) return kMalformed;
        const size_t length = static_cast<size_t>(word);
        size = 8 + Pad8(length);
        if (size > left) return kMalformed;
        if (wanted) rc = sqlite3_bind_blob64(statement, index, p + 8, length, SQLITE_TRANSIENT);
        break;
      }
      case kNull:
        break;  // bindings were cleared
      default:
        return kMalformed;  // UNIXTIME is for answers only
    }
    if (rc != SQLITE_OK) return rc;
    p += size;
    left -= size;
  }
  *values = count;
  return SQLITE_OK;
}

// ------------------------------------------------------------------------------------------------- rows

Columns::Kind Columns::KindOf(const char* declared_type) {
  if (declared_type == nullptr) return Kind::kPlain;
  for (const char* name : {"DATETIME", "DATE", "TIMESTAMP"}) {
    if (sqlite3_stricmp(declared_type, name) == 0) return Kind::kDate;
  }
  return sqlite3_stricmp(declared_type, "BOOLEAN") == 0 ? Kind::kBoolean : Kind::kPlain;
}

void Columns::Load(sqlite3_stmt* statement) {
  const int count = sqlite3_column_count(statement);
  kinds_.clear();
  prefix_.Clear();
  prefix_.AppendWord(static_cast<uint64_t>(count));
  for (int i = 0; i < count; i++) {
    kinds_.push_back(KindOf(sqlite3_column_decltype(statement, i)));
    const char* name = sqlite3_column_name(statement, i);
    if (name == nullptr) name = "";
    prefix_.AppendText(name, std::strlen(name));
  }
}

// A row: 4-bit codes, low nibble first, zeros to 8 · the values (§4.3). Which code: §4.4; a value whose storage class
// does not fit its column's declared type goes with its plain code.
bool Columns::AppendRow(sqlite3_stmt* statement, Buffer* out) const {
  const size_t count = kinds_.size();
  const size_t header_bytes = Pad8((count + 1) / 2);
  const size_t header_at = out->size();
  uint8_t* header = out->Extend(header_bytes);
  if (header == nullptr) return true;
  std::memset(header, 0, header_bytes);
  for (size_t i = 0; i < count; i++) {
    const int column = static_cast<int>(i);
    const Kind kind = kinds_[i];
    uint8_t code = kNull;
    switch (sqlite3_column_type(statement, column)) {
      case SQLITE_INTEGER:
        code = kind == Kind::kDate ? kUnixTime : kind == Kind::kBoolean ? kBoolean : kInteger;
        out->AppendWord(static_cast<uint64_t>(sqlite3_column_int64(statement, column)));
        break;
      case SQLITE_FLOAT: {
        const double value = sqlite3_column_double(statement, column);
        code = kFloat;
        out->Append(&value, 8);
        break;
      }
      case SQLITE_TEXT: {
        const char* text = reinterpret_cast<const char*>(sqlite3_column_text(statement, column));
        if (text == nullptr) return false;
        const size_t bytes = static_cast<size_t>(sqlite3_column_bytes(statement, column));
        code = kind == Kind::kDate ? kIso8601 : kText;
        out->AppendText(text, strnlen(text, bytes));  // a NUL inside ends it
        break;
      }
      case SQLITE_BLOB: {
        const void* blob = sqlite3_column_blob(statement, column);
        const size_t bytes = static_cast<size_t>(sqlite3_column_bytes(statement, column));
        if (blob == nullptr && bytes > 0) return false;
        code = kBlob;
        out->AppendBlob(blob, bytes);
        break;
      }
      default:  // NULL: an empty text and false in typed columns, as C dqlite's clients expect
        code = kind == Kind::kDate ? kIso8601 : kind == Kind::kBoolean ? kBoolean : kNull;
        out->AppendWord(0);
        break;
    }
    if (out->failed()) return true;
    uint8_t* place = out->data() + header_at + i / 2;
    *place = static_cast<uint8_t>(*place | (i % 2 == 0 ? code : code << 4));
  }
  return true;
}

void BeginRows(Buffer* out) {
  out->Clear();
  out->AppendWord(0);
}

void EndRows(Buffer* out, uint64_t marker) {
  out->AppendWord(marker);
  if (out->failed()) return;
  const uint32_t words = static_cast<uint32_t>((out->size() - kHeaderBytes) / 8);
  uint8_t* header = out->data();
  std::memset(header, 0, kHeaderBytes);
  std::memcpy(header, &words, 4);
  header[4] = kRowsType;
}

}  // namespace tuple
