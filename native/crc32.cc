#include "crc32.h"

#include <array>
#include <cassert>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

constexpr uint32_t kPolynomial = 0x04C11DB7;

// table[k][b]: the remainder of byte b followed by k zero bytes.
using Tables = std::array<std::array<uint32_t, 256>, 8>;

constexpr Tables MakeTables() {
  Tables tables{};
  for (uint32_t i = 0; i < 256; i++) {
    uint32_t crc = i << 24;
    for (int bit = 0; bit < 8; bit++) crc = (crc << 1) ^ ((crc & 0x80000000u) != 0 ? kPolynomial : 0);
    tables[0][i] = crc;
  }
  for (size_t k = 1; k < 8; k++)
    for (size_t i = 0; i < 256; i++)
      tables[k][i] = (tables[k - 1][i] << 8) ^ tables[0][tables[k - 1][i] >> 24];
  return tables;
}

constexpr Tables kTables = MakeTables();

inline uint32_t BigEndian32(const uint8_t* p) {
  return uint32_t{p[0]} << 24 | uint32_t{p[1]} << 16 | uint32_t{p[2]} << 8 | p[3];
}

}  // namespace

uint32_t Crc32ByByte(uint32_t crc, const uint8_t* data, size_t bytes) {
  for (size_t i = 0; i < bytes; i++) crc = (crc << 8) ^ kTables[0][(crc >> 24) ^ data[i]];
  return crc;
}

uint32_t Crc32BySlicing(uint32_t crc, const uint8_t* data, size_t bytes) {
  while (bytes >= 8) {
    const uint32_t high = BigEndian32(data) ^ crc;
    const uint32_t low = BigEndian32(data + 4);
    crc = kTables[7][high >> 24] ^ kTables[6][(high >> 16) & 0xff] ^ kTables[5][(high >> 8) & 0xff] ^
          kTables[4][high & 0xff] ^ kTables[3][low >> 24] ^ kTables[2][(low >> 16) & 0xff] ^
          kTables[1][(low >> 8) & 0xff] ^ kTables[0][low & 0xff];
    data += 8;
    bytes -= 8;
  }
  return Crc32ByByte(crc, data, bytes);
}

#if defined(__x86_64__)

bool HasClmul() {
  static const bool has = __builtin_cpu_supports("pclmul") && __builtin_cpu_supports("ssse3");
  return has;
}

namespace {

// x^n mod P: what a polynomial must be multiplied with to be moved up by n bits.
constexpr uint32_t PowerOfX(unsigned n) {
  uint32_t value = 1;
  for (unsigned i = 0; i < n; i++) value = (value << 1) ^ ((value & 0x80000000u) != 0 ? kPolynomial : 0);
  return value;
}

// Loads 16 bytes as a polynomial: the first byte holds the highest powers.
__attribute__((target("pclmul,ssse3"))) inline __m128i Load(const uint8_t* p) {
  const __m128i reverse = _mm_set_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  return _mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)), reverse);
}

// Moves `state` up by the distance that `keys` stand for and adds `next`. Each half is multiplied with a 32-bit
// constant, so a product has at most 96 bits.
__attribute__((target("pclmul,ssse3"))) inline __m128i Fold(__m128i state, __m128i keys, __m128i next) {
  return _mm_xor_si128(next, _mm_xor_si128(_mm_clmulepi64_si128(state, keys, 0x11),
                                           _mm_clmulepi64_si128(state, keys, 0x00)));
}

}  // namespace

// Folding by carry-less multiplication: the message is reduced 64 bytes at a time to 16 bytes with the same remainder,
// and the tables finish those.
__attribute__((target("pclmul,ssse3"))) uint32_t Crc32ByClmul(uint32_t crc, const uint8_t* data, size_t bytes) {
  if (bytes < 128) return Crc32BySlicing(crc, data, bytes);
  const __m128i by512 = _mm_set_epi64x(PowerOfX(512 + 64), PowerOfX(512));
  const __m128i by128 = _mm_set_epi64x(PowerOfX(128 + 64), PowerOfX(128));
  __m128i a = _mm_xor_si128(Load(data), _mm_set_epi32(static_cast<int>(crc), 0, 0, 0));
  __m128i b = Load(data + 16);
  __m128i c = Load(data + 32);
  __m128i d = Load(data + 48);
  for (data += 64, bytes -= 64; bytes >= 64; data += 64, bytes -= 64) {
    a = Fold(a, by512, Load(data));
    b = Fold(b, by512, Load(data + 16));
    c = Fold(c, by512, Load(data + 32));
    d = Fold(d, by512, Load(data + 48));
  }
  a = Fold(Fold(Fold(a, by128, b), by128, c), by128, d);
  for (; bytes >= 16; data += 16, bytes -= 16) a = Fold(a, by128, Load(data));
  const __m128i reverse = _mm_set_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  uint8_t rest[16];
  _mm_storeu_si128(reinterpret_cast<__m128i*>(rest), _mm_shuffle_epi8(a, reverse));
  return Crc32BySlicing(Crc32BySlicing(0, rest, sizeof rest), data, bytes);
}

uint32_t Crc32(uint32_t crc, const uint8_t* data, size_t bytes) {
  return HasClmul() ? Crc32ByClmul(crc, data, bytes) : Crc32BySlicing(crc, data, bytes);
}

#else

bool HasClmul() { return false; }

uint32_t Crc32ByClmul(uint32_t crc, const uint8_t* data, size_t bytes) {
  assert(false && "no carry-less multiplication on this processor");
  return Crc32BySlicing(crc, data, bytes);
}

uint32_t Crc32(uint32_t crc, const uint8_t* data, size_t bytes) { return Crc32BySlicing(crc, data, bytes); }

#endif
