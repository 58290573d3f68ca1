#include "io/journal.h"

#include <limits>
#include <string_view>
#include <utility>

#include "io/file.h"
#include "io/json.h"
#include "tessera/core/check.h"
#include "tessera/core/error.h"

namespace tessera::io {

namespace {

constexpr const char* kJournalFormat = "tessera-journal";
constexpr int64_t kJournalVersion = 1;
constexpr int64_t kMaxCount = int64_t{1} << 60;

/// The next line of `text` without its newline, which is taken off; empty when no whole line is left.
std::optional<std::string_view> take_line(std::string_view& text) {
  const size_t end = text.find('\n');
  if (end == std::string_view::npos) return std::nullopt;
  const std::string_view line = text.substr(0, end);
  text.remove_prefix(end + 1);
  return line;
}

Fingerprint parse_head(std::string_view line, const std::string& where) {
  const nlohmann::json object = parse_json_object(line, where);
  const JsonReader reader(object, where);
  const std::string format = reader.require_string("format");
  if (format != kJournalFormat) throw Error(where + ": 'format'", "'" + escaped(format) + "'", kJournalFormat);
  reader.require_int("version", kJournalVersion, kJournalVersion);
  const auto fingerprint = object.find("fingerprint");
  if (fingerprint == object.end()) throw Error(where + ": 'fingerprint'", "no such key", "an object of strings");
  return fingerprint_from_json(*fingerprint, where);
}

Checkpoint parse_checkpoint(std::string_view line, const std::string& where) {
  const nlohmann::json object = parse_json_object(line, where);
  const JsonReader reader(object, where);
  Checkpoint checkpoint;
  checkpoint.num_ok = reader.require_int("ok", 0, kMaxCount);
  checkpoint.num_failed = reader.require_int("failed", 0, kMaxCount);
  checkpoint.next_index = reader.require_int("next_index", checkpoint.num_records(), kMaxCount);
  checkpoint.num_bytes = static_cast<uint64_t>(reader.require_int("bytes", 0, kMaxCount));
  checkpoint.checksum = reader.require_string("checksum");
  return checkpoint;
}

std::string head_line(const Fingerprint& fingerprint) {
  const nlohmann::ordered_json head = {
      {"format", kJournalFormat}, {"version", kJournalVersion}, {"fingerprint", to_json(fingerprint)}};
  return head.dump() + "\n";
}

std::string checkpoint_line(const Checkpoint& checkpoint) {
  const nlohmann::ordered_json object = {{"ok", checkpoint.num_ok},
                                         {"failed", checkpoint.num_failed},
                                         {"next_index", checkpoint.next_index},
                                         {"bytes", checkpoint.num_bytes},
                                         {"checksum", checkpoint.checksum}};
  return object.dump() + "\n";
}

}  // namespace

std::optional<JournalContent> read_journal(const std::filesystem::path& path) {
  std::error_code ignored;  // what cannot be looked at cannot be opened either
  const std::filesystem::file_type type = std::filesystem::symlink_status(path, ignored).type();
  if (type == std::filesystem::file_type::not_found) return std::nullopt;
  const std::string content = read_text_file(path, kMaxJournalBytes);
  const std::string name = escaped(path.native());
  std::string_view rest = content;
  const std::optional<std::string_view> head = take_line(rest);
  if (!head) return std::nullopt;
  JournalContent journal{.fingerprint = parse_head(*head, name + ": line 1"), .last = {}};
  bool has_checkpoint = false;
  int64_t line_number = 1;
  while (const std::optional<std::string_view> line = take_line(rest)) {
    const std::string where = str_cat(name, ": line ", ++line_number);
    const Checkpoint checkpoint = parse_checkpoint(*line, where);
    const Checkpoint& last = journal.last;
    if (checkpoint.num_ok < last.num_ok || checkpoint.num_failed < last.num_failed ||
        checkpoint.next_index < last.next_index || checkpoint.num_bytes < last.num_bytes) {
      throw Error(where, "less than the line before it", "counts that grow");
    }
    journal.last = checkpoint;
    has_checkpoint = true;
  }
  if (!has_checkpoint) return std::nullopt;
  return journal;
}

Journal::Journal(std::filesystem::path path, Fingerprint fingerprint)
    : path_(std::move(path)), fingerprint_(std::move(fingerprint)) {}

void Journal::append(const Checkpoint& checkpoint) {
  if (std::exchange(is_started_, false)) {
    AppendFile(path_).append(checkpoint_line(checkpoint));
  } else {
    // As a whole and by renaming: what was there stays valid until this is. Also after an append that failed and may
    // have left half a line.
    OutputFile file(path_);
    file.write(head_line(fingerprint_) + checkpoint_line(checkpoint));
    file.commit();
  }
  is_started_ = has_checkpoint_ = true;
}

}  // namespace tessera::io
