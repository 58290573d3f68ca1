// Reading whole inputs in tests: a record is its text, or "!" and its error with the path replaced by PATH.
#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "io/records.h"
#include "tessera/core/check.h"
#include "unit/io/io_test_util.h"

namespace tessera::io {

using Records = std::vector<std::string>;

inline Records texts_of(const RecordBatch& batch) { return {batch.texts.begin(), batch.texts.end()}; }

inline std::string replaced(std::string text, const std::string& what, const std::string& with) {
  const size_t position = what == "-" ? std::string::npos : text.find(what);
  return position == std::string::npos ? text : text.replace(position, what.size(), with);
}

/// Every record, read in batches of `batch_size`; checks what holds for every batch.
inline Records read_all(const RecordSource& source, int64_t batch_size = 3) {
  const auto reader = open_records(source);
  Records records;
  RecordBatch batch;
  while (reader->next(batch_size, batch)) {
    EXPECT_EQ(batch.first_index, static_cast<int64_t>(records.size()));
    EXPECT_EQ(batch.texts.size(), static_cast<size_t>(batch.num_records));
    EXPECT_EQ(batch.errors.size(), static_cast<size_t>(batch.num_records));
    EXPECT_TRUE(batch.num_records >= 1 && batch.num_records <= batch_size) << batch.num_records;
    for (size_t i = 0; i < batch.texts.size(); ++i) {
      EXPECT_TRUE(batch.errors[i].empty() || batch.texts[i].empty()) << batch.errors[i];
      records.push_back(batch.errors[i].empty() ? std::string(batch.texts[i])
                                                : str_cat("!", replaced(batch.errors[i], source.path, "PATH")));
    }
  }
  return records;
}

inline Records read_bytes(RecordSource source, std::string_view bytes, int64_t batch_size = 3) {
  const testing::TempDir dir;
  testing::write_file(dir / "input", bytes);
  source.path = (dir / "input").string();
  return read_all(source, batch_size);
}

inline Records read_text(std::string_view bytes) { return read_bytes({.format = InputFormat::text}, bytes); }
inline Records read_jsonl(std::string_view bytes, const std::string& field = "") {
  return read_bytes({.format = InputFormat::jsonl, .field = field}, bytes);
}
inline Records read_csv(std::string_view bytes, const std::string& field = "") {
  return read_bytes({.format = InputFormat::csv, .field = field}, bytes);
}

/// Puts `descriptor` in the place of standard input, and closes it at the end.
class StandardInput {
 public:
  explicit StandardInput(int descriptor) : saved_(dup(STDIN_FILENO)) {
    if (dup2(descriptor, STDIN_FILENO) < 0) throw std::runtime_error("dup2");
    close(descriptor);
  }
  ~StandardInput() {
    if (saved_ >= 0) {
      dup2(saved_, STDIN_FILENO);
      close(saved_);
    } else {
      close(STDIN_FILENO);
    }
  }
  StandardInput(const StandardInput&) = delete;
  StandardInput& operator=(const StandardInput&) = delete;

 private:
  int saved_;
};

/// Calls `read` while `bytes` come in through standard input, `chunk` at a time.
template <class Read>
auto with_piped_input(std::string_view bytes, size_t chunk, const Read& read) {
  int ends[2];
  if (pipe(ends) != 0) throw std::runtime_error("pipe");
  const StandardInput redirected(ends[0]);
  std::thread writer([&] {
    for (size_t begin = 0; begin < bytes.size(); begin += chunk) {
      const std::string_view piece = bytes.substr(begin, chunk);
      if (::write(ends[1], piece.data(), piece.size()) < 0) break;
    }
    close(ends[1]);
  });
  auto result = read();
  writer.join();
  return result;
}

inline Records read_through_pipe(const RecordSource& source, std::string_view bytes, size_t chunk) {
  return with_piped_input(bytes, chunk, [&] { return read_all(source); });
}

}  // namespace tessera::io
