#include "own_program.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <system_error>

#include "exit_codes.h"
#include "tessera/core/error.h"

extern char** environ;

namespace tessera::cli {

ProgramRun run_own_program(const std::vector<std::string>& arguments) {
  std::vector<std::string> words{"tessera"};
  words.insert(words.end(), arguments.begin(), arguments.end());
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  std::array<int, 2> ends{};
  if (pipe2(ends.data(), O_CLOEXEC) != 0) throw Incomplete("cannot make a pipe: " + errno_message(errno));
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
  pid_t process = 0;
  const int failed = posix_spawn(&process, "/proc/self/exe", &actions, nullptr, argv.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  close(ends[1]);
  ProgramRun run;
  std::array<char, 16384> bytes{};
  for (ssize_t count = 1; failed == 0 && count != 0;) {
    count = read(ends[0], bytes.data(), bytes.size());
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) break;
    run.output.append(bytes.data(), static_cast<size_t>(count));
  }
  close(ends[0]);
  if (failed != 0) throw Incomplete("cannot run tessera " + arguments.front() + ": " + errno_message(failed));
  int status = 0;
  while (waitpid(process, &status, 0) < 0 && errno == EINTR) {
  }
  run.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return run;
}

}  // namespace tessera::cli
