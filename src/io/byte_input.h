// Where the bytes of an input of records come from: a file, a pipe, or a filter over another one.
//
//   std::unique_ptr<ByteInput> plain = decompress(std::move(file));   // a ByteFilter
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

namespace tessera::io {

class ByteInput {
 public:
  virtual ~ByteInput() = default;
  /// Up to `destination.size()` bytes, at least 1 except at the end of the input or when stopped. Throws Error.
  virtual size_t read(std::span<char> destination) = 0;
  /// Whether bytes, or the end, can be had within `timeout`, as far as is known without reading.
  virtual bool is_ready(std::chrono::milliseconds timeout) const = 0;
  virtual const std::string& name() const = 0;  ///< for messages
  virtual bool is_file() const = 0;             ///< a regular file, so that nothing ever waits
  /// Of the file or pipe itself, and how much of that was read (for a progress bar; thread-safe); -1 = unknown.
  virtual int64_t num_bytes() const = 0;
  virtual int64_t bytes_read() const = 0;
  virtual bool stopped() const = 0;  ///< the end that `read` reported is the caller's own
};

/// Makes text in UTF-8 of what comes in.
using ByteFilter = std::function<std::unique_ptr<ByteInput>(std::unique_ptr<ByteInput>)>;

/// A filter's input; whatever is not about the bytes is passed on to it.
class FilteredInput : public ByteInput {
 public:
  explicit FilteredInput(std::unique_ptr<ByteInput> source) : source_(std::move(source)) {}
  bool is_ready(std::chrono::milliseconds timeout) const override { return source_->is_ready(timeout); }
  const std::string& name() const final { return source_->name(); }
  bool is_file() const final { return source_->is_file(); }
  int64_t num_bytes() const final { return source_->num_bytes(); }
  int64_t bytes_read() const final { return source_->bytes_read(); }
  bool stopped() const final { return source_->stopped(); }

 protected:
  ByteInput& source() { return *source_; }
  const ByteInput& source() const { return *source_; }

 private:
  std::unique_ptr<ByteInput> source_;
};

}  // namespace tessera::io
