// The first bytes of an input, looked at before they are read.
#pragma once

#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "io/byte_input.h"

namespace tessera::cli {

class PeekedInput : public io::FilteredInput {
 public:
  using FilteredInput::FilteredInput;

  /// Reads on while `is_wanted(first bytes)`; returns those there are. A pipe may deliver them in pieces.
  template <class IsWanted>
  std::string_view peek(const IsWanted& is_wanted) {
    while (!ended_ && is_wanted(std::string_view(first_))) {
      char bytes[4096];
      const size_t count = source().read(bytes);
      first_.append(bytes, count);
      ended_ = count == 0;
    }
    return std::string_view(first_).substr(begin_);
  }

  size_t read(std::span<char> destination) override {
    const size_t count = std::min(destination.size(), first_.size() - begin_);
    if (count == 0) return ended_ ? 0 : source().read(destination);
    std::memcpy(destination.data(), first_.data() + begin_, count);
    begin_ += count;
    return count;
  }
  bool is_ready(std::chrono::milliseconds timeout) const override {
    return begin_ < first_.size() || ended_ || source().is_ready(timeout);
  }

 private:
  std::string first_;  // [begin_, size) is still to be handed out
  size_t begin_ = 0;
  bool ended_ = false;
};

/// An input that is read through a filter or as it is: its first bytes, when they come, decide.
class ChosenInput : public io::FilteredInput {
 public:
  explicit ChosenInput(std::unique_ptr<io::ByteInput> source)
      : FilteredInput(std::make_unique<PeekedInput>(std::move(source))) {}

  size_t read(std::span<char> destination) final {
    if (!is_chosen_) {
      is_chosen_ = true;
      const std::string_view first = static_cast<PeekedInput&>(source()).peek(
          [this](std::string_view bytes) { return may_begin_a_format(bytes); });
      filter_ = choose(first, std::make_unique<Borrowed>(source()));
    }
    return filter_ ? filter_->read(destination) : source().read(destination);
  }
  bool is_ready(std::chrono::milliseconds timeout) const final {
    return filter_ ? filter_->is_ready(timeout) : source().is_ready(timeout);
  }

 protected:
  /// Whether more bytes may yet tell.
  virtual bool may_begin_a_format(std::string_view bytes) const = 0;
  /// A filter over `input`, or null.
  virtual std::unique_ptr<io::ByteInput> choose(std::string_view first, std::unique_ptr<io::ByteInput> input) = 0;

 private:
  /// The source, which stays where it is: another thread may ask it how much was read.
  class Borrowed final : public io::ByteInput {
   public:
    explicit Borrowed(io::ByteInput& input) : input_(input) {}
    size_t read(std::span<char> destination) override { return input_.read(destination); }
    bool is_ready(std::chrono::milliseconds timeout) const override { return input_.is_ready(timeout); }
    const std::string& name() const override { return input_.name(); }
    bool is_file() const override { return input_.is_file(); }
    int64_t num_bytes() const override { return input_.num_bytes(); }
    int64_t bytes_read() const override { return input_.bytes_read(); }
    bool stopped() const override { return input_.stopped(); }

   private:
    io::ByteInput& input_;
  };

  bool is_chosen_ = false;
  std::unique_ptr<io::ByteInput> filter_;
};

}  // namespace tessera::cli
