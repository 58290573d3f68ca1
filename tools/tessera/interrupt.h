// Ctrl-C: the first asks a run to stop, the second ends the process at once.
//
//   InterruptGuard interrupt;
//   engine.run(reader, sink, interrupt.token());
//   if (interrupt.signal() != 0) return 128 + interrupt.signal();
//
// SIGTERM counts as Ctrl-C. What is in flight gets two seconds; then the process ends as if asked twice, and the output
// is valid up to its last flush. While a guard lives the process has these handlers; one guard at a time.
#pragma once

#include <array>
#include <stop_token>
#include <thread>

namespace tessera::cli {

class InterruptGuard {
 public:
  InterruptGuard();
  ~InterruptGuard();
  InterruptGuard(const InterruptGuard&) = delete;
  InterruptGuard& operator=(const InterruptGuard&) = delete;

  std::stop_token token() const { return source_.get_token(); }
  /// SIGINT or SIGTERM if one came, else 0.
  int signal() const;

 private:
  void watch();

  std::stop_source source_;
  std::array<int, 2> pipe_{-1, -1};  // [read, write]; the handler writes the signal, the destructor closes
  std::thread watcher_;
};

}  // namespace tessera::cli
