// Helpers of the native tests: a node's databases without Node, SQL as text, captured commands as strings.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "connection.h"
#include "native_test.h"
#include "vfs.h"

// One engine with one database.
class TestNode {
 public:
  explicit TestNode(uint64_t command_bytes_max = 256u << 20, int budget_ms = 100000) : budget_ms_(budget_ms) {
    vfs::Options options;
    options.command_bytes_max = command_bytes_max;
    vfs_ = std::make_shared<vfs::Vfs>(options);
    slot_ = vfs_->Open("test.db");
  }

  std::shared_ptr<engine::Connection> Connect() const {
    engine::Error error;
    auto connection = engine::Connection::Open(vfs_, slot_, budget_ms_, &error);
    CHECK(connection != nullptr);
    return connection;
  }

  vfs::Database* operator->() const { return slot_->database.get(); }
  vfs::Database& database() const { return *slot_->database; }
  const std::shared_ptr<vfs::Slot>& slot() const { return slot_; }
  const std::shared_ptr<vfs::Vfs>& vfs() const { return vfs_; }

  // The next captured command; empty: none.
  std::string Take() const {
    std::string command(slot_->database->CapturedBytes(), '\0');
    if (!command.empty()) slot_->database->TakeCaptured(reinterpret_cast<uint8_t*>(command.data()));
    return command;
  }

  void Apply(const std::string& command) const {
    const char* problem = slot_->database->Apply(reinterpret_cast<const uint8_t*>(command.data()), command.size());
    CHECK(problem == nullptr);
  }

  std::string Image() const {
    vfs::Image image(slot_->database);
    std::string bytes(image.bytes(), '\0');
    CHECK(image.Read(reinterpret_cast<uint8_t*>(bytes.data()), bytes.size()) == bytes.size());
    return bytes;
  }

 private:
  const int budget_ms_;
  std::shared_ptr<vfs::Vfs> vfs_;
  std::shared_ptr<vfs::Slot> slot_;
};

inline std::unique_ptr<engine::Statement> Prepare(engine::Connection& connection, const std::string& sql) {
  size_t tail = 0;
  return connection.Prepare(sql.data(), sql.size(), true, &tail);
}

// EXEC of every statement of the text; "" or the error's text. "row": it yielded one.
inline std::string Exec(engine::Connection& connection, const std::string& sql) {
  size_t offset = 0;
  while (offset < sql.size()) {
    size_t tail = 0;
    auto statement = connection.Prepare(sql.data() + offset, sql.size() - offset, true, &tail);
    if (statement == nullptr) return connection.error().message;
    offset += tail;
    switch (statement->Execute()) {
      case engine::Outcome::kDone:
        break;
      case engine::Outcome::kRow:
        return "row";
      case engine::Outcome::kOverBudget:
        return "over budget";
      default:
        return connection.error().message;
    }
  }
  return "";
}

// Appends the values of a finished ROWS message that holds integers, texts and NULLs, as "1|a|NULL\n".
void FormatRows(const tuple::Buffer& message, std::string* out);

// QUERY: all rows, formatted, or "error: " and the text.
std::string Query(engine::Connection& connection, const std::string& sql);
