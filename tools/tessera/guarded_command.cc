#include "guarded_command.h"

#include <cstdio>
#include <exception>
#include <new>
#include <string>

#include "exit_codes.h"
#include "side_file.h"
#include "tessera/classifier/engine.h"
#include "tessera/core/error.h"

namespace tessera::cli {

int fail(int exit_code, const std::string& message) {
  std::fprintf(stderr, "tessera: error: %s\n", message.c_str());
  return exit_code;
}

int run_guarded(const std::function<int()>& command) {
  try {
    return command();
  } catch (const Interrupted& interrupted) {
    return fail(interrupted.exit_code(), interrupted.what());
  } catch (const SideFileFailed& error) {
    return fail(kSideFileFailed, std::string(error.what()) + "; the results are whole");
  } catch (const ClosedPipe&) {
    return kClosedPipe;
  } catch (const Incomplete& error) {
    return fail(kIncomplete, error.what());
  } catch (const classifier::NoDeviceLeft& error) {
    return fail(kIncomplete, error.what());
  } catch (const Error& error) {
    return fail(kUsage, error.what());
  } catch (const std::bad_alloc&) {
    return fail(kUsage, "memory: too little on this machine for what was asked");
  } catch (const std::exception& error) {
    return fail(kIncomplete, std::string("internal: ") + error.what());
  }
}

}  // namespace tessera::cli
