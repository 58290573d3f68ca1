#include "side_file.h"

#include <utility>

#include "exit_codes.h"
#include "output.h"
#include "tessera/core/error.h"

namespace tessera::cli {

SideFile::SideFile(const std::string& option, const std::string& path) : option_(option), path_(path) {
  if (!path.empty() && path != "-") claim_.emplace(path);
}

void SideFile::write(const std::string& content) {
  if (path_.empty()) return;
  try {
    Output output = claim_ ? Output(std::move(*claim_)) : Output(path_);
    output.write(content);
    output.commit();
  } catch (const Error& error) {
    throw SideFileFailed(option_ + ": " + error.what());
  } catch (const Incomplete& error) {
    throw SideFileFailed(option_ + ": " + error.what());
  }
}

}  // namespace tessera::cli
