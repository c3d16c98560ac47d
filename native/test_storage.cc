// crc32, log_writer and snapshot_frame without Node.
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <algorithm>
#include <vector>

#include "crc32.h"
#include "log_writer.h"
#include "native_test.h"
#include "snapshot_frame.h"

namespace {

std::vector<uint8_t> RandomBytes(TestRandom& random, size_t bytes) {
  std::vector<uint8_t> result(bytes);
  for (uint8_t& byte : result) byte = static_cast<uint8_t>(random.Next() >> 24);
  return result;
}

const uint8_t* Bytes(const char* text) { return reinterpret_cast<const uint8_t*>(text); }

// --------------------------------------------------------------------------------------------------------- crc32

using Crc32Function = uint32_t (*)(uint32_t, const uint8_t*, size_t);

std::vector<Crc32Function> Crc32Functions() {
  std::vector<Crc32Function> functions{Crc32, Crc32ByByte, Crc32BySlicing};
  if (HasClmul()) functions.push_back(Crc32ByClmul);
  return functions;
}

TEST(CrcGivesTheVectorsOfTheFormat) {  // disk-format §2
  const uint8_t zeros[32] = {};
  const uint8_t one[1] = {1};
  for (const Crc32Function crc : Crc32Functions()) {
    CHECK(crc(0, Bytes("123456789"), 9) == 0x89A1897F);
    CHECK(crc(0, zeros, sizeof zeros) == 0);
    CHECK(crc(0, one, 1) == 0x04C11DB7);
    CHECK(crc(0x12345678, zeros, 0) == 0x12345678);
  }
}

TEST(CrcIsTheSameInEveryWayAtEveryLengthAndAlignment) {
  TestRandom random(1);
  const std::vector<uint8_t> bytes = RandomBytes(random, 20000);
  for (size_t length = 0; length < 700; length++) {
    const size_t offset = random.Below(64);
    const uint32_t seed = static_cast<uint32_t>(random.Next());
    const uint32_t expected = Crc32ByByte(seed, bytes.data() + offset, length);
    for (const Crc32Function crc : Crc32Functions()) CHECK(crc(seed, bytes.data() + offset, length) == expected);
  }
  const uint32_t whole = Crc32ByByte(0, bytes.data(), bytes.size());
  for (const Crc32Function crc : Crc32Functions()) {
    CHECK(crc(0, bytes.data(), bytes.size()) == whole);
    for (const size_t cut : {1u, 63u, 128u, 4096u, 12345u})
      CHECK(crc(crc(0, bytes.data(), cut), bytes.data() + cut, bytes.size() - cut) == whole);
  }
}

// ---------------------------------------------------------------------------------------------------- log writer

struct AlignedFree {
  void operator()(uint8_t* p) const { std::free(p); }
};
using AlignedBytes = std::unique_ptr<uint8_t, AlignedFree>;

AlignedBytes Aligned(size_t bytes, uint8_t fill) {
  uint8_t* p = static_cast<uint8_t*>(std::aligned_alloc(4096, bytes));
  memset(p, fill, bytes);
  return AlignedBytes(p);
}

// An empty file and an eventfd, both gone at the end. O_DIRECT where the file system of the temporary folder has it.
class Scratch {
 public:
  Scratch() : event_fd(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) {
    const char* dir = std::getenv("TMPDIR");
    std::string path = std::string(dir != nullptr ? dir : "/tmp") + "/dqlite-native-XXXXXX";
    buffered_fd = mkstemp(path.data());
    CHECK(buffered_fd >= 0);
    fd = open(path.c_str(), O_RDWR | O_DIRECT | O_CLOEXEC);
    direct = fd >= 0;
    if (!direct) fd = dup(buffered_fd);
    unlink(path.c_str());
  }
  ~Scratch() {
    close(fd);
    close(buffered_fd);
    close(event_fd);
  }
  uint8_t ByteAt(off_t offset) const {
    uint8_t byte = 0;
    CHECK(pread(buffered_fd, &byte, 1, offset) == 1);
    return byte;
  }

  const int event_fd;
  int fd;
  int buffered_fd;
  bool direct;
};

constexpr LogWriteMethod kMethods[] = {LogWriteMethod::kIoUring, LogWriteMethod::kAio, LogWriteMethod::kThread};

TEST(EachLogWriteMethodWritesWhereItShould) {
  for (const LogWriteMethod method : kMethods) {
    Scratch scratch;
    int error = 0;
    std::unique_ptr<LogWriter> writer = OpenLogWriter(method, scratch.event_fd, &error);
    if (writer == nullptr) {
      CHECK(method != LogWriteMethod::kThread);  // the one that is always there
      CHECK(error != 0);
      continue;
    }
    CHECK(writer->method() == method);
    int64_t result;
    CHECK(!writer->Reap(&result));
    for (uint8_t i = 0; i < 100; i++) {
      const size_t bytes = 4096u * (1 + i % 5);
      AlignedBytes block = Aligned(bytes, static_cast<uint8_t>(i + 1));
      const uint64_t offset = 4096u * i;
      const LogWrite write{scratch.fd, block.get(), bytes, offset};
      CHECK(WriteAndWait(*writer, scratch.event_fd, write, 10000) == static_cast<int64_t>(bytes));
      CHECK(scratch.ByteAt(static_cast<off_t>(offset + bytes - 1)) == i + 1);
    }
  }
}

TEST(EachLogWriteMethodReportsAnError) {
  for (const LogWriteMethod method : kMethods) {
    Scratch scratch;
    int error = 0;
    std::unique_ptr<LogWriter> writer = OpenLogWriter(method, scratch.event_fd, &error);
    if (writer == nullptr) continue;
    AlignedBytes block = Aligned(4096, 1);
    CHECK(WriteAndWait(*writer, scratch.event_fd, {-1, block.get(), 4096, 0}, 10000) == -EBADF);
    // And works afterwards.
    CHECK(WriteAndWait(*writer, scratch.event_fd, {scratch.fd, block.get(), 4096, 0}, 10000) == 4096);
  }
}

TEST(EachLogWriteMethodCanBeClosedWithAWriteInFlight) {
  for (const LogWriteMethod method : kMethods) {
    Scratch scratch;
    AlignedBytes block = Aligned(1 << 20, 7);
    int error = 0;
    std::unique_ptr<LogWriter> writer = OpenLogWriter(method, scratch.event_fd, &error);
    if (writer == nullptr) continue;
    CHECK(writer->Submit({scratch.fd, block.get(), 1 << 20, 0}) == 0);
    writer.reset();
    CHECK(scratch.ByteAt((1 << 20) - 1) == 7);
  }
}

TEST(TheProbeFindsAMethodAndHonoursAForcedOne) {
  Scratch scratch;
  AlignedBytes block = Aligned(4096, 9);
  int error = 0;
  auto best =
      AdaptiveLogWriter::Probe(scratch.event_fd, scratch.fd, scratch.direct, block.get(), nullptr, &error);
  CHECK(best != nullptr);
  CHECK(scratch.ByteAt(4095) == 9);
  const LogWriteMethod thread = LogWriteMethod::kThread;
  auto forced = AdaptiveLogWriter::Probe(scratch.event_fd, scratch.fd, scratch.direct, block.get(), &thread, &error);
  CHECK(forced != nullptr);
  CHECK(forced->method() == LogWriteMethod::kThread);
  // A file that cannot be written: no method works, and the reason is told.
  const int read_only = open("/dev/null", O_RDONLY);
  CHECK(AdaptiveLogWriter::Probe(scratch.event_fd, read_only, false, block.get(), nullptr, &error) == nullptr);
  CHECK(error == EBADF);
  close(read_only);
}

TEST(ARefusedSubmissionGoesToTheThread) {
  // A descriptor that AIO and io_uring report at once or late, and that is an error on every method: the adaptive
  // writer must end with an error, not without an end.
  Scratch scratch;
  AlignedBytes block = Aligned(4096, 9);
  int error = 0;
  auto writer =
      AdaptiveLogWriter::Probe(scratch.event_fd, scratch.fd, scratch.direct, block.get(), nullptr, &error);
  CHECK(writer != nullptr);
  CHECK(WriteAndWait(*writer, scratch.event_fd, {-1, block.get(), 4096, 0}, 10000) == -EBADF);
  CHECK(writer->Submit({scratch.fd, block.get(), 4096, 4096}) == 0);
  writer->Drain();
  CHECK(scratch.ByteAt(8191) == 9);
}

TEST(TheChooserLeavesASlowMethodOnlyForAFasterOne) {
  LogWriteChooser chooser;
  for (int i = 0; i < 1000; i++) chooser.Observe(90);
  CHECK(!chooser.use_thread());
  for (int i = 0; i < 100 && !chooser.use_thread(); i++) chooser.Observe(4000);
  CHECK(chooser.use_thread());  // a trial
  for (int i = 0; i < LogWriteChooser::kTrialWrites; i++) chooser.Observe(100);
  CHECK(chooser.use_thread());  // and it stays
  for (int i = 0; i < LogWriteChooser::kHoldWrites; i++) chooser.Observe(100);
  CHECK(!chooser.use_thread());  // the first method gets another chance
  for (int i = 0; i < 100 && !chooser.use_thread(); i++) chooser.Observe(4000);
  CHECK(chooser.use_thread());
  for (int i = 0; i < LogWriteChooser::kTrialWrites; i++) chooser.Observe(3900);
  CHECK(!chooser.use_thread());  // the thread was no better: a slow disk, or a busy loop
  for (int i = 0; i < LogWriteChooser::kHoldWrites - 1; i++) {
    chooser.Observe(4000);
    CHECK(!chooser.use_thread());  // and is not tried again soon
  }
}

// ------------------------------------------------------------------------------------------------ snapshot frames

std::vector<uint8_t> Compress(const std::vector<uint8_t>& content, size_t piece) {
  SnapshotFrameWriter writer(content.size());
  std::vector<uint8_t> frame;
  std::vector<uint8_t> target(SnapshotFrameWriter::Bound(piece));
  auto take = [&](int64_t bytes) {
    CHECK(bytes >= 0);
    frame.insert(frame.end(), target.begin(), target.begin() + bytes);
  };
  take(writer.Begin(target.data(), target.size()));
  for (size_t at = 0; at < content.size(); at += piece)
    take(writer.Update(content.data() + at, std::min(piece, content.size() - at), target.data(), target.size()));
  take(writer.End(target.data(), target.size()));
  return frame;
}

// False: damaged or incomplete.
bool Decompress(const std::vector<uint8_t>& file, size_t piece, size_t room, std::vector<uint8_t>* content) {
  SnapshotFrameReader reader;
  content->clear();
  // Exact copies, so that the sanitizer sees a read past the end.
  const std::vector<uint8_t> head(file.begin(), file.begin() + std::min(file.size(), SnapshotFrameReader::kSniffBytes));
  if (!reader.Sniff(head.data(), head.size())) return false;
  std::vector<uint8_t> target(room);
  for (size_t at = 0; at < file.size();) {
    const std::vector<uint8_t> source(file.begin() + at, file.begin() + std::min(at + piece, file.size()));
    SnapshotFrameReader::Step step;
    if (!reader.Update(source.data(), source.size(), target.data(), target.size(), &step)) return false;
    CHECK(step.consumed > 0 || step.produced > 0);
    content->insert(content->end(), target.begin(), target.begin() + step.produced);
    at += step.consumed;
  }
  return reader.is_complete();
}

std::vector<uint8_t> Content(TestRandom& random, size_t bytes) {
  std::vector<uint8_t> content(bytes);
  for (size_t i = 0; i < bytes; i++) content[i] = random.Below(4) == 0 ? static_cast<uint8_t>(random.Next()) : 0;
  return content;
}

TEST(AFrameGivesItsContentBackInPiecesOfAnySize) {
  TestRandom random(3);
  for (const size_t bytes : {1u, 16u, 65535u, 65536u, 65537u, 300000u, 1000003u}) {
    const std::vector<uint8_t> content = Content(random, bytes);
    for (const size_t piece : {4096u, 262144u}) {
      const std::vector<uint8_t> frame = Compress(content, piece);
      // disk-format §7: FLG 0x4C, BD 0x40, then the content size.
      CHECK(memcmp(frame.data(), "\x04\x22\x4D\x18\x4C\x40", 6) == 0);
      uint64_t size;
      memcpy(&size, frame.data() + 6, 8);
      CHECK(size == bytes);
      std::vector<uint8_t> back;
      for (const size_t read_piece : {7u, 5000u, 1u << 20})
        CHECK((bytes > 100000 && read_piece == 7) || (Decompress(frame, read_piece, 262144, &back) && back == content));
      CHECK(Decompress(frame, 100000, 333, &back) && back == content);
    }
  }
}

TEST(AFrameIsRefusedWhenItIsTornOrFlippedOrTooLong) {
  TestRandom random(4);
  const std::vector<uint8_t> content = Content(random, 150000);
  const std::vector<uint8_t> frame = Compress(content, 65536);
  std::vector<uint8_t> back;
  for (size_t length = 4; length < frame.size(); length += length < 64 ? 1 : 997) {
    const std::vector<uint8_t> torn(frame.begin(), frame.begin() + length);
    CHECK(!Decompress(torn, 1 << 20, 65536, &back));
  }
  for (int i = 0; i < 300; i++) {
    std::vector<uint8_t> flipped = frame;
    // Not in the magic number (then it is not a frame), and FLG bits that only describe are caught by its checksum.
    flipped[4 + random.Below(static_cast<uint32_t>(frame.size()) - 4)] ^= static_cast<uint8_t>(1 << random.Below(8));
    // A flip may only pass where it says the same in another way (a match copied from other zeros).
    CHECK(!Decompress(flipped, 1 << 20, 65536, &back) || back == content);
  }
  std::vector<uint8_t> longer = frame;
  longer.push_back(0);
  CHECK(!Decompress(longer, 1 << 20, 65536, &back));
}

TEST(RawBytesPassThrough) {
  TestRandom random(5);
  const std::vector<uint8_t> content = Content(random, 100000);
  std::vector<uint8_t> back;
  CHECK(Decompress(content, 4096, 1000, &back) && back == content);
}

TEST(AFrameWriterRefusesAnotherLengthThanAnnounced) {
  std::vector<uint8_t> target(SnapshotFrameWriter::Bound(1000));
  const std::vector<uint8_t> content(1000);
  SnapshotFrameWriter less(1001);
  CHECK(less.Begin(target.data(), target.size()) > 0);
  CHECK(less.Update(content.data(), 1000, target.data(), target.size()) >= 0);
  CHECK(less.End(target.data(), target.size()) == -1);
  CHECK(!less.error().empty());
  SnapshotFrameWriter more(999);
  CHECK(more.Begin(target.data(), target.size()) > 0);
  CHECK(more.Update(content.data(), 1000, target.data(), target.size()) == -1);
}

}  // namespace
