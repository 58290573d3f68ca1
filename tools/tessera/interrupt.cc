#include "interrupt.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <unistd.h>

#include <cerrno>
#include <string_view>
#include <system_error>

#include "tessera/core/check.h"
#include "tessera/core/error.h"

namespace tessera::cli {

namespace {

constexpr int kGraceMilliseconds = 2000;
constexpr std::array<int, 2> kSignals{SIGINT, SIGTERM};

// What a signal handler may touch: lock-free, of the process as the handlers are.
std::atomic<int> signal_seen{0};
std::atomic<int> pipe_write_end{-1};

void on_signal(int number) {
  const int error_number = errno;
  int none = 0;
  if (!signal_seen.compare_exchange_strong(none, number)) _exit(128 + number);
  const unsigned char byte = static_cast<unsigned char>(number);
  // A failed write leaves the second Ctrl-C, which needs nothing.
  static_cast<void>(!write(pipe_write_end, &byte, 1));
  errno = error_number;
}

/// One byte from `descriptor` within `timeout` milliseconds (-1 = for ever), 0 once its other end is closed, or -1.
int read_byte(int descriptor, int timeout) {
  pollfd request{.fd = descriptor, .events = POLLIN, .revents = 0};
  int ready = 0;
  do {
    ready = poll(&request, 1, timeout);
  } while (ready < 0 && errno == EINTR);
  unsigned char byte = 0;
  if (ready <= 0) return -1;
  return read(descriptor, &byte, 1) == 1 ? byte : 0;
}

}  // namespace

InterruptGuard::InterruptGuard() {
  if (pipe2(pipe_.data(), O_CLOEXEC) != 0) throw Error("signals", "cannot make a pipe: " + errno_message(errno));
  signal_seen = 0;
  pipe_write_end = pipe_[1];
  try {
    watcher_ = std::thread([this] { watch(); });
  } catch (const std::exception& error) {
    pipe_write_end = -1;
    for (const int descriptor : pipe_) close(descriptor);
    const auto* const refused = dynamic_cast<const std::system_error*>(&error);
    if (refused == nullptr) throw;  // no memory
    throw Error("threads", "cannot start one: " + refused->code().message() + " (a limit on processes)");
  }
  for (const int number : kSignals) {
    struct sigaction old_action {};
    sigaction(number, nullptr, &old_action);
    if (old_action.sa_handler == SIG_IGN) continue;  // nohup and background jobs stay as they were started
    struct sigaction action {};
    action.sa_handler = on_signal;
    action.sa_flags = SA_RESTART;
    sigaction(number, &action, nullptr);
  }
}

InterruptGuard::~InterruptGuard() {
  for (const int number : kSignals) {
    struct sigaction action {};
    sigaction(number, nullptr, &action);
    if (action.sa_handler != on_signal) continue;
    action.sa_handler = SIG_DFL;
    sigaction(number, &action, nullptr);
  }
  pipe_write_end = -1;
  close(pipe_[1]);  // which the watcher sees; nothing about it can fail
  watcher_.join();
  close(pipe_[0]);
}

int InterruptGuard::signal() const { return signal_seen; }

void InterruptGuard::watch() {
  const int number = read_byte(pipe_[0], -1);
  if (number <= 0) return;
  source_.request_stop();
  if (read_byte(pipe_[0], kGraceMilliseconds) >= 0) return;
  static constexpr std::string_view kMessage = "\ntessera: the work in flight took too long; ended at the last flush\n";
  static_cast<void>(!write(STDERR_FILENO, kMessage.data(), kMessage.size()));
  _exit(128 + number);
}

}  // namespace tessera::cli
