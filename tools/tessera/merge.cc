// tessera merge: the parts of a sharded run become one output.
#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "commands.h"
#include "exit_codes.h"
#include "file_roles.h"
#include "io/file.h"
#include "io/manifest.h"
#include "tessera/core/error.h"

namespace tessera::cli {

namespace {

constexpr const char* kMergeFooter =
    "Examples:\n"
    "  tessera merge labels.jsonl\n"
    "  tessera merge labels.csv --remove-parts\n"
    "  tessera merge labels.csv --part host1/labels.csv.0-of-2 --part host2/labels.csv.1-of-2\n"
    "The parts are OUTPUT.I-of-N with OUTPUT.I-of-N.manifest.json, as 'tessera classify --shard' wrote them. OUTPUT\n"
    "gets the bytes that one run over the whole input would have written. Before anything is written it is checked "
    "that\n"
    "every shard is there, that no record is missing or twice, that all parts are of one run and none was changed.";

struct MergeOptions {
  std::string output;
  std::vector<std::string> parts;
  bool remove_parts = false;
  bool quiet = false;
};

int merge(const MergeOptions& options) {
  std::vector<std::filesystem::path> parts(options.parts.begin(), options.parts.end());
  if (parts.empty()) parts = io::find_parts(options.output);
  FileRoles roles;
  for (const std::filesystem::path& part : parts) {
    roles.reads("--part", part.string());
    roles.reads("--part", io::manifest_path(part).string());
  }
  roles.writes("output", options.output);
  const io::MergeSummary summary = io::merge_parts(parts, options.output);
  if (options.remove_parts) {
    // The manifest first: a part without one counts for nothing.
    for (const std::filesystem::path& part : parts) {
      io::remove_file(io::manifest_path(part));
      io::remove_file(part);
    }
  }
  if (!options.quiet) {
    std::fprintf(stderr, "tessera: merged %zu parts: %lld records, %lld labelled, %lld failed\n", parts.size(),
                 static_cast<long long>(summary.num_ok + summary.num_failed), static_cast<long long>(summary.num_ok),
                 static_cast<long long>(summary.num_failed));
  }
  return summary.num_failed > 0 ? kSomeFailed : kAllOk;
}

}  // namespace

Command add_merge(CLI::App& app) {
  auto options = std::make_shared<MergeOptions>();
  app.add_option("output", options->output, "The file to write, as --output named it")->type_name("FILE")->required();
  app.add_option("--part", options->parts, "A part, its manifest beside it; else those beside OUTPUT")
      ->type_name("FILE")
      ->allow_extra_args(false);
  app.add_flag("--remove-parts", options->remove_parts, "Afterwards; else they stay");
  app.add_flag("-q,--quiet", options->quiet, "No summary");
  app.footer(kMergeFooter);
  return [options] { return merge(*options); };
}

}  // namespace tessera::cli
