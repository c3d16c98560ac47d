// A test program without a framework: TEST registers itself, CHECK says where and stops. Knows nothing of what is
// tested; each native/test_*.cc registers its own tests. Runs under ASan and UBSan, which do most of the checking.
#pragma once

#include <cstdint>

struct NativeTest {
  NativeTest(const char* name, void (*run)());

  const char* name;
  void (*run)();
  NativeTest* next;  // in the order of registration within a file
};

// Prints the place and ends the program: a sanitizer-built test that went wrong has nothing more to say.
[[noreturn]] void FailCheck(const char* file, int line, const char* condition);

// Small deterministic pseudo-random numbers (xorshift64*): a failure repeats.
class TestRandom {
 public:
  explicit TestRandom(uint64_t seed) : state_(seed * 2654435769u + 88172645463325252ull) {}
  uint64_t Next() {
    state_ ^= state_ >> 12;
    state_ ^= state_ << 25;
    state_ ^= state_ >> 27;
    return state_ * 2685821657736338717ull;
  }
  // 0 .. below-1
  uint32_t Below(uint32_t below) { return static_cast<uint32_t>(Next() % below); }

 private:
  uint64_t state_;
};

// TEST(NameInCamelCase) { ... }
#define TEST(name)                                      \
  static void Test##name();                             \
  static NativeTest registered##name(#name, Test##name); \
  static void Test##name()

#define CHECK(condition)                                     \
  do {                                                       \
    if (!(condition)) FailCheck(__FILE__, __LINE__, #condition); \
  } while (0)
