#include "output.h"

#include <unistd.h>

#include <cerrno>
#include <utility>

#include "exit_codes.h"
#include "tessera/core/error.h"

namespace tessera::cli {

namespace {

constexpr size_t kBufferBytes = 1 << 20;

/// Runs `action`; from here on an Error means that the run cannot be completed.
template <class Action>
void while_running(const Action& action) {
  try {
    action();
  } catch (const Error& error) {
    throw Incomplete(error.what());
  }
}

}  // namespace

Output::Output(const std::string& path) {
  if (path != "-") file_ = std::make_unique<io::OutputFile>(path);
}

Output::Output(io::OutputClaim claim) : file_(std::make_unique<io::OutputFile>(std::move(claim))) {}

Output::Output(io::OutputClaim claim, uint64_t kept_bytes)
    : file_(std::make_unique<io::OutputFile>(std::move(claim), kept_bytes)) {}

void Output::write(std::string_view bytes) {
  if (file_) {
    while_running([&] { file_->write(bytes); });
    return;
  }
  pending_ += bytes;
  if (pending_.size() >= kBufferBytes) write_standard_output();
}

void Output::flush() {
  if (file_) {
    while_running([&] { file_->flush(); });
  } else {
    write_standard_output();
  }
}

void Output::sync() {
  flush();
  if (file_) while_running([&] { file_->sync(); });
}

void Output::commit() {
  if (file_) {
    while_running([&] { file_->commit(); });
  } else {
    write_standard_output();
  }
}

std::string Output::partial_name() const { return file_ ? escaped(file_->partial_path().native()) : std::string(); }

void Output::write_standard_output() {
  size_t done = 0;
  while (done < pending_.size()) {
    const ssize_t count = ::write(STDOUT_FILENO, pending_.data() + done, pending_.size() - done);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0 && errno == EPIPE) throw ClosedPipe();
    if (count < 0) throw Incomplete("standard output: cannot write: " + errno_message(errno));
    done += static_cast<size_t>(count);
  }
  pending_.clear();
}

}  // namespace tessera::cli
