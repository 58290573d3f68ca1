#include <algorithm>
#include <cstring>
#include <functional>
#include <queue>

#include "io/checksum.h"
#include "io/file.h"
#include "io/manifest.h"
#include "io/quote.h"
#include "tessera/core/check.h"
#include "tessera/core/error.h"

namespace tessera::io {

namespace {

namespace fs = std::filesystem;

constexpr size_t kMergeReadBytes = 256u << 10;
constexpr size_t kMaxListedShards = 8;  // in a message

/// A part, read once from front to back.
class Part {
 public:
  explicit Part(const fs::path& path) : path_(path), manifest_(read_manifest(path)), name_(escaped(path.native())) {}

  const PartManifest& manifest() const { return manifest_; }
  const std::string& name() const { return name_; }

  /// Before anything else: it bounds what the manifest's other numbers can ask for.
  void verify_size() const {
    const InputFile file(path_);
    if (file.size() != manifest_.num_bytes) {
      throw Error(name_, str_cat(file.size(), " bytes"), str_cat("the ", manifest_.num_bytes, " of its manifest"));
    }
  }

  /// The part is what its manifest says, to the byte. `header` is what every part of the run starts with.
  void verify(const std::string& header) {
    Checksum checksum;
    int64_t num_newlines = 0;
    char last = '\n';
    rewind();
    while (refill()) {
      checksum.update({buffer_.data(), buffer_.size()});
      num_newlines += std::count(buffer_.begin(), buffer_.end(), '\n');
      last = buffer_.back();
    }
    const std::string found = checksum.hex();
    if (found != manifest_.checksum) {
      throw Error(name_, "the checksum " + found, quote(manifest_.checksum) + " of its manifest: the part was changed");
    }
    if (read_header() != header) throw Error(name_, "another header than the other parts", quote(header));
    num_newlines -= std::count(header.begin(), header.end(), '\n');
    if (manifest_.record_bytes == 0 && (num_newlines != manifest_.num_records() || last != '\n')) {
      throw Error(name_, str_cat(num_newlines, " lines"), str_cat(manifest_.num_records(), ", a line a record"));
    }
  }

  std::string read_header() const {
    std::string header(manifest_.header_bytes, '\0');
    InputFile(path_).read_at(0, std::as_writable_bytes(std::span(header)));
    return header;
  }

  /// To the first result.
  void start() {
    rewind();
    copy_bytes(manifest_.header_bytes, nullptr);
  }

  /// The next `count` results.
  void copy(int64_t count, OutputFile& output) {
    if (manifest_.record_bytes > 0) {
      copy_bytes(static_cast<uint64_t>(count) * manifest_.record_bytes, &output);
    } else {
      copy_lines(count, output);
    }
  }

 private:
  void rewind() {
    file_ = std::make_unique<InputFile>(path_);
    offset_ = 0;
    buffer_.clear();
    used_ = 0;
  }

  /// False at the end of the part.
  bool refill() {
    buffer_.resize(static_cast<size_t>(std::min<uint64_t>(kMergeReadBytes, file_->size() - offset_)));
    file_->read_at(offset_, std::as_writable_bytes(std::span(buffer_)));
    offset_ += buffer_.size();
    used_ = 0;
    return !buffer_.empty();
  }

  void need_bytes() {
    if (used_ == buffer_.size() && !refill()) throw Error(name_, "its end", "more results: the part was changed");
  }

  void copy_bytes(uint64_t count, OutputFile* output) {
    while (count > 0) {
      need_bytes();
      const size_t piece = static_cast<size_t>(std::min<uint64_t>(count, buffer_.size() - used_));
      if (output != nullptr) output->write({buffer_.data() + used_, piece});
      used_ += piece;
      count -= piece;
    }
  }

  void copy_lines(int64_t count, OutputFile& output) {
    while (count > 0) {
      need_bytes();
      const char* const first = buffer_.data() + used_;
      const char* const end = buffer_.data() + buffer_.size();
      const char* line = first;
      while (count > 0 && line < end) {
        const void* const newline = std::memchr(line, '\n', static_cast<size_t>(end - line));
        count -= newline != nullptr;
        line = newline == nullptr ? end : static_cast<const char*>(newline) + 1;
      }
      output.write({first, static_cast<size_t>(line - first)});
      used_ += static_cast<size_t>(line - first);
    }
  }

  fs::path path_;
  PartManifest manifest_;
  std::string name_;
  std::unique_ptr<InputFile> file_;
  uint64_t offset_ = 0;
  std::vector<char> buffer_;
  size_t used_ = 0;  // of the buffer
};

std::string records_text(int64_t begin, int64_t end) { return str_cat("records [", begin, ", ", end, ")"); }

/// One run's parts, each shard once.
void check_shards(const std::vector<Part>& parts) {
  const Part& first = parts.front();
  const int64_t num_shards = first.manifest().shard.count;
  std::vector<const Part*> owners(static_cast<size_t>(num_shards));
  for (const Part& part : parts) {
    const PartManifest& manifest = part.manifest();
    if (manifest.shard.count != num_shards) {
      throw Error(part.name(), str_cat("a part of ", manifest.shard.count, " shards"),
                  str_cat("of ", num_shards, ", as ", first.name()));
    }
    const Part*& owner = owners[static_cast<size_t>(manifest.shard.index)];
    if (owner != nullptr) {
      throw Error(str_cat("shard ", manifest.shard.index, " of ", num_shards),
                  "two parts, " + owner->name() + " and " + part.name(), "one");
    }
    owner = &part;
  }
  std::string missing;
  size_t num_missing = 0;
  for (int64_t i = 0; i < num_shards; ++i) {
    if (owners[static_cast<size_t>(i)] != nullptr || ++num_missing > kMaxListedShards) continue;
    missing += (missing.empty() ? "" : ", ") + str_cat(i);
  }
  if (num_missing == 0) return;
  if (num_missing > kMaxListedShards) missing += ", ...";
  throw Error("parts", str_cat(parts.size(), " of ", num_shards, " shards: missing shard ", missing),
              str_cat("all of 0 to ", num_shards - 1, ", each with its manifest"));
}

void check_same_run(const std::vector<Part>& parts) {
  const PartManifest& first = parts.front().manifest();
  for (const Part& part : parts) {
    const PartManifest& manifest = part.manifest();
    require_equal(first.fingerprint, manifest.fingerprint, part.name());
    if (manifest.total_records != first.total_records) {
      throw Error(part.name(), str_cat(manifest.total_records, " records in the input"),
                  str_cat(first.total_records, ", as ", parts.front().name()));
    }
    if (manifest.output_format != first.output_format || manifest.record_bytes != first.record_bytes) {
      throw Error(part.name(), "output format " + quote(manifest.output_format), quote(first.output_format));
    }
  }
}

/// Calls `take(part, range)` for every range of records in the order of the input. Throws Error naming the records that
/// no part holds, or that two hold.
void for_each_range(std::vector<Part>& parts, const std::function<void(Part&, const IndexRange&)>& take) {
  struct Next {
    IndexRange range;
    Part* part;
    bool operator>(const Next& other) const { return range.begin > other.range.begin; }
  };
  std::priority_queue<Next, std::vector<Next>, std::greater<>> queue;
  const auto push = [&](Part& part, int64_t index) {
    const IndexRange range = part.manifest().records.next_range(index);
    if (range.begin < range.end) queue.push({range, &part});
  };
  for (Part& part : parts) push(part, 0);
  const int64_t total = parts.front().manifest().total_records;
  int64_t position = 0;
  const Part* last = nullptr;
  const auto require_no_gap = [&](int64_t begin) {
    if (begin > position) throw Error(records_text(position, begin), "no part that holds them", "one");
  };
  while (!queue.empty()) {
    const auto [range, part] = queue.top();
    queue.pop();
    require_no_gap(range.begin);
    if (range.begin < position) {
      throw Error(records_text(range.begin, std::min(range.end, position)),
                  "two parts that hold them, " + last->name() + " and " + part->name(), "one");
    }
    take(*part, range);
    position = range.end;
    last = part;
    push(*part, position);
  }
  require_no_gap(total);
}

}  // namespace

MergeSummary merge_parts(const std::vector<fs::path>& paths, const fs::path& output) {
  if (paths.empty()) throw Error("parts", "none", "at least one");
  std::vector<Part> parts(paths.begin(), paths.end());
  check_shards(parts);
  check_same_run(parts);
  for (const Part& part : parts) part.verify_size();
  for_each_range(parts, [](Part&, const IndexRange&) {});
  const std::string header = parts.front().read_header();
  for (Part& part : parts) part.verify(header);

  MergeSummary summary;
  OutputFile file(output);
  file.write(header);
  for (Part& part : parts) {
    part.start();
    summary.num_ok += part.manifest().num_ok;
    summary.num_failed += part.manifest().num_failed;
  }
  for_each_range(parts, [&](Part& part, const IndexRange& range) { part.copy(range.end - range.begin, file); });
  summary.num_bytes = file.num_bytes();
  file.commit();
  return summary;
}

}  // namespace tessera::io
