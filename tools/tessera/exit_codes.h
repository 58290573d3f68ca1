// How a run of the command ended, for scripts: the exit codes and the exceptions that lead to them.
#pragma once

#include <stdexcept>
#include <string>

namespace tessera::cli {

enum ExitCode : int {
  kAllOk = 0,
  kSomeFailed = 1,      ///< records failed (they are listed), or a comparison found differences
  kUsage = 2,           ///< an option, a file or a model is wrong; nothing was run
  kDeviceFailed = 3,    ///< a device failed, and the others finished the work: nothing is missing
  kIncomplete = 4,      ///< the run broke off: no device is left, input that cannot be read further, output that cannot
                        ///< be written
  kSideFileFailed = 5,  ///< the results are whole; a file beside them (--statistics, --json, --svg) is missing
  kInterrupted = 130,   ///< 128 + SIGINT; 143 after SIGTERM
  kClosedPipe = 141,    ///< 128 + SIGPIPE: the reader of standard output went away, as `| head` does
};

/// A run that broke off after it had started.
class Incomplete : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// Ctrl-C in a run whose results are of no use unless complete.
class Interrupted : public std::runtime_error {
 public:
  explicit Interrupted(int signal) : std::runtime_error("interrupted"), signal_(signal) {}
  int exit_code() const { return 128 + signal_; }

 private:
  int signal_;
};

/// Nobody reads standard output any more; ends the run without a message.
class ClosedPipe : public std::runtime_error {
 public:
  ClosedPipe() : std::runtime_error("standard output was closed") {}
};

}  // namespace tessera::cli
