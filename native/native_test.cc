// Runs every registered test, or those whose name contains one of the arguments. See native_test.h.
#include "native_test.h"

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>

static NativeTest* first = nullptr;
static NativeTest** last = &first;
static const char* running = "";

NativeTest::NativeTest(const char* name, void (*run)()) : name(name), run(run), next(nullptr) {
  *last = this;
  last = &next;
}

void FailCheck(const char* file, int line, const char* condition) {
  std::fprintf(stderr, "%s:%d: %s: CHECK(%s) failed\n", file, line, running, condition);
  std::abort();
}

static bool Wanted(const char* name, int argc, char** argv) {
  if (argc < 2) return true;
  for (int i = 1; i < argc; i++) {
    if (std::strstr(name, argv[i]) != nullptr) return true;
  }
  return false;
}

int main(int argc, char** argv) {
  int count = 0;
  for (NativeTest* test = first; test != nullptr; test = test->next) {
    if (!Wanted(test->name, argc, argv)) continue;
    running = test->name;
    const auto start = std::chrono::steady_clock::now();
    test->run();
    const auto elapsed = std::chrono::steady_clock::now() - start;
    const auto ms = std::chrono::duration_cast<std::chrono::milliseconds>(elapsed).count();
    std::printf("ok %s (%lld ms)\n", test->name, static_cast<long long>(ms));
    std::fflush(stdout);
    count++;
  }
  std::printf("%d tests\n", count);
  return count == 0 ? 1 : 0;
}
