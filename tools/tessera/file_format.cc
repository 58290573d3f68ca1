#include "file_format.h"

#include <algorithm>
#include <filesystem>
#include <iterator>
#include <string_view>

#include "decompress.h"
#include "option_text.h"
#include "tessera/core/error.h"

namespace tessera::cli {

namespace {

/// Of tables and documents, and of what is compressed. Other extensions say nothing about the format.
constexpr std::string_view kOtherExtensions[] = {
    ".json", ".xls", ".xlsx", ".ods", ".parquet", ".arrow",  ".feather", ".avro",   ".orc", ".npy",
    ".npz",  ".pkl", ".pt",   ".db",  ".bz2",     ".sqlite", ".lz4",     ".pickle", ".zip", ".tar",
    ".tgz",  ".7z",  ".xml",  ".htm", ".html",    ".pdf",    ".docx",    ".doc",    ".rtf",
};

/// Of pictures, which no option writes; ".svg" among them, for those that write no picture.
constexpr std::string_view kPictureExtensions[] = {".png",  ".jpg", ".jpeg", ".gif", ".webp", ".bmp",
                                                   ".tiff", ".tif", ".eps",  ".ps",  ".svg",  ".svgz"};

bool promises_another_format(const std::string& extension) {
  return std::find(std::begin(kOtherExtensions), std::end(kOtherExtensions), extension) != std::end(kOtherExtensions);
}

}  // namespace

std::string lower_extension(const std::string& path) {
  std::string extension = std::filesystem::path(path).extension().string();
  for (char& c : extension) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  return extension;
}

std::string input_extension(const std::string& path) {
  const std::string extension = lower_extension(path);
  if (!is_compressed_extension(extension)) return extension;
  return lower_extension(path.substr(0, path.size() - extension.size()));
}

void require_own_extension(const std::string& option, const std::string& path, const std::string& own) {
  const std::string extension = lower_extension(path);
  const bool is_picture = std::find(std::begin(kPictureExtensions), std::end(kPictureExtensions), extension) !=
                          std::end(kPictureExtensions);
  if (extension == own || !(is_picture || promises_another_format(extension))) return;
  throw Error(option + " " + escaped(path), "a " + escaped(extension) + " file",
              "a " + own + " file, which is what the option writes");
}

io::InputFormat input_format(const std::string& path, const std::string& option) {
  if (!option.empty()) return with_options_named({"format"}, [&] { return io::parse_input_format(option); });
  const std::string extension = input_extension(path);
  if (extension == ".csv") return io::InputFormat::csv;
  if (extension == ".tsv" || extension == ".tab") return io::InputFormat::tsv;
  if (extension == ".jsonl" || extension == ".ndjson") return io::InputFormat::jsonl;
  const std::string where = "--input " + escaped(path);
  if (extension == ".bin") throw Error(where, "a .bin file and no --format", "--format ids or --format embeddings");
  if (promises_another_format(extension)) {
    throw Error(where, "a " + escaped(extension) + " file and no --format",
                std::string("a file of text, csv, tsv or jsonl, or --format to say which of them it is") +
                    (extension == ".parquet" ? "; the Python package reads Parquet: python -m tessera classify" : ""));
  }
  return io::InputFormat::text;
}

io::OutputFormat output_format(const std::string& path, const std::string& option) {
  if (!option.empty()) return with_options_named({"output_format"}, [&] { return io::parse_output_format(option); });
  const std::string extension = lower_extension(path);
  if (extension == ".csv") return io::OutputFormat::csv;
  if (extension == ".tsv" || extension == ".tab") return io::OutputFormat::tsv;
  if (extension == ".jsonl" || extension == ".ndjson") return io::OutputFormat::jsonl;
  if (extension == ".bin") return io::OutputFormat::bin;
  if (promises_another_format(extension) || is_compressed_extension(extension)) {
    throw Error("--output " + escaped(path), "a " + escaped(extension) + " file and no --output-format",
                ".csv, .tsv, .jsonl, .bin or .txt, or --output-format text, csv, tsv, jsonl or bin");
  }
  return io::OutputFormat::text;
}

}  // namespace tessera::cli
