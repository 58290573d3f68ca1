#include "progress.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>

namespace tessera::cli {

namespace {

constexpr std::chrono::milliseconds kRedrawInterval{100};
constexpr int kBarWidth = 24;
constexpr int kColumnsForBar = 80;  // narrower terminals get the numbers without the bar, so that the line never wraps

int terminal_columns() {
  winsize size{};
  return ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : kColumnsForBar;
}

std::string bar(double share) {
  const int filled = static_cast<int>(share * kBarWidth);
  return "[" + std::string(static_cast<size_t>(filled), '#') +
         std::string(static_cast<size_t>(kBarWidth - filled), ' ') + "] ";
}

/// "1:02:03" or "2:03".
std::string duration(double seconds) {
  const int64_t whole = static_cast<int64_t>(seconds + 0.5);
  char text[40];
  if (whole >= 3600) {
    std::snprintf(text, sizeof(text), "%lld:%02d:%02d", static_cast<long long>(whole / 3600),
                  static_cast<int>(whole / 60 % 60), static_cast<int>(whole % 60));
  } else {
    std::snprintf(text, sizeof(text), "%d:%02d", static_cast<int>(whole / 60), static_cast<int>(whole % 60));
  }
  return text;
}

}  // namespace

bool stderr_is_terminal() { return isatty(STDERR_FILENO) == 1; }

/// Whether it can go back to the beginning of a line and clear it.
static bool stderr_redraws() {
  const char* const terminal = std::getenv("TERM");
  return stderr_is_terminal() && (terminal == nullptr || std::string_view(terminal) != "dumb");
}

Progress::Progress(bool enabled, const io::RecordReader& reader)
    : enabled_(enabled && stderr_redraws()), reader_(reader) {}

Progress::~Progress() {
  if (drawn_) std::fputs("\r\033[K", stderr);
}

void Progress::update(int64_t num_done) {
  const Clock::time_point now = Clock::now();
  if (!enabled_ || (drawn_ && now - last_drawn_ < kRedrawInterval)) return;
  const double seconds = std::chrono::duration<double>(now - start_).count();
  const double rate = seconds > 0 ? static_cast<double>(num_done) / seconds : 0;
  const double done = share(num_done);
  std::string line = "\r";
  if (done >= 0 && terminal_columns() >= kColumnsForBar) line += bar(done);
  char text[96];
  std::snprintf(text, sizeof(text), "%lld done", static_cast<long long>(num_done));
  line += text;
  if (done >= 0) {
    std::snprintf(text, sizeof(text), ", %.0f %%", 100 * done);
    line += text;
  }
  std::snprintf(text, sizeof(text), ", %.0f/s", rate);
  line += text;
  if (done > 0) line += ", " + duration(seconds * (1 - done) / done) + " left";
  line += "\033[K";
  std::fputs(line.c_str(), stderr);
  std::fflush(stderr);
  last_drawn_ = now;
  drawn_ = true;
}

double Progress::share(int64_t num_done) const {
  if (reader_.num_records_hint() > 0) {
    return std::min(1.0, static_cast<double>(num_done) / static_cast<double>(reader_.num_records_hint()));
  }
  if (reader_.num_bytes_hint() > 0) {
    return std::min(1.0, static_cast<double>(reader_.bytes_read()) / static_cast<double>(reader_.num_bytes_hint()));
  }
  return -1;
}

}  // namespace tessera::cli
