// The CRC-32 of dqlite's segments and snapshot metadata (disk-format §2): polynomial 0x04C11DB7, most significant bit
// first, initial value 0, no final xor. zlib's crc32 is the reflected variant and gives other values.
//
// Chainable: Crc32(Crc32(0, a), b) is the checksum of a followed by b. Pure functions, any thread.
#pragma once
#include <cstddef>
#include <cstdint>

uint32_t Crc32(uint32_t crc, const uint8_t* data, size_t bytes);

// The three ways behind it, for tests. Crc32ByClmul may only be called where HasClmul() holds.
uint32_t Crc32ByByte(uint32_t crc, const uint8_t* data, size_t bytes);
uint32_t Crc32BySlicing(uint32_t crc, const uint8_t* data, size_t bytes);
bool HasClmul();
uint32_t Crc32ByClmul(uint32_t crc, const uint8_t* data, size_t bytes);
