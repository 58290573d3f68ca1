#include "file_format.h"

#include <algorithm>
#include <filesystem>
#include <iterator>
#include <string_view>

#include "option_text.h"
#include "tessera/core/error.h"

namespace tessera::cli {

namespace {

/// Of tables and documents, and of what is compressed. Other extensions say nothing about the format.
constexpr std::string_view kOtherExtensions[] = {
    ".json", ".tsv", ".tab",    ".xls", ".xlsx", ".ods",    ".parquet", ".arrow", ".feather", ".avro", ".orc", ".npy",
    ".npz",  ".pkl", ".pickle", ".pt",  ".db",   ".sqlite", ".gz",      ".bz2",   ".xz",      ".zst",  ".lz4", ".zip",
    ".tar",  ".tgz", ".7z",     ".xml", ".html", ".htm",    ".pdf",     ".docx",  ".doc",     ".rtf",
};

bool promises_another_format(const std::string& extension) {
  return std::find(std::begin(kOtherExtensions), std::end(kOtherExtensions), extension) != std::end(kOtherExtensions);
}

}  // namespace

std::string lower_extension(const std::string& path) {
  std::string extension = std::filesystem::path(path).extension().string();
  for (char& c : extension) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  return extension;
}

io::InputFormat input_format(const std::string& path, const std::string& option) {
  if (!option.empty()) return with_options_named({"format"}, [&] { return io::parse_input_format(option); });
  const std::string extension = lower_extension(path);
  if (extension == ".csv") return io::InputFormat::csv;
  if (extension == ".jsonl" || extension == ".ndjson") return io::InputFormat::jsonl;
  const std::string where = "--input " + escaped(path);
  if (extension == ".bin") throw Error(where, "a .bin file and no --format", "--format ids or --format embeddings");
  if (promises_another_format(extension)) {
    throw Error(where, "a " + escaped(extension) + " file and no --format",
                "a file of text, csv or jsonl, or --format to say which of them it is");
  }
  return io::InputFormat::text;
}

io::OutputFormat output_format(const std::string& path, const std::string& option) {
  if (!option.empty()) return with_options_named({"output_format"}, [&] { return io::parse_output_format(option); });
  const std::string extension = lower_extension(path);
  if (extension == ".csv") return io::OutputFormat::csv;
  if (extension == ".jsonl" || extension == ".ndjson") return io::OutputFormat::jsonl;
  if (extension == ".bin") return io::OutputFormat::bin;
  if (promises_another_format(extension)) {
    throw Error("--output " + escaped(path), "a " + escaped(extension) + " file and no --output-format",
                ".csv, .jsonl, .bin or .txt, or --output-format text, csv, jsonl or bin");
  }
  return io::OutputFormat::text;
}

}  // namespace tessera::cli
