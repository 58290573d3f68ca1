// Any bytes as a journal. It is refused with an Error that a terminal can show, or it has a last checkpoint, which a
// torn line behind it does not change.
#include "io/journal.h"

#include "memory_file.h"
#include "tessera/core/error.h"

namespace {

using namespace tessera;
using fuzz::require;

std::optional<io::JournalContent> read(std::string_view content) {
  return io::read_journal(fuzz::MemoryFile(content).path());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view content = fuzz::text_of(data, size);
  try {
    const std::optional<io::JournalContent> journal = read(content);
    if (!journal) return 0;
    const io::Checkpoint& last = journal->last;
    require(last.num_ok >= 0 && last.num_failed >= 0 && last.next_index >= last.num_records());
    const std::string_view whole = content.substr(0, content.rfind('\n') + 1);
    const auto torn = read(std::string(whole) + "{\"ok\": 1");
    require(torn && torn->last == last && torn->fingerprint == journal->fingerprint);
  } catch (const Error& error) {
    fuzz::check_message(error.what());
  }
  return 0;
}
