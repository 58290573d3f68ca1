#include "io/file.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <csignal>

#include "tessera/core/check.h"
#include "unit/io/io_test_util.h"

namespace tessera::io {
namespace {

namespace fs = std::filesystem;

/// Root may do what permissions forbid, so that tests of permissions run as nobody.
class AsNobody {
 public:
  AsNobody() : was_root_(geteuid() == 0) { active_ = !was_root_ || seteuid(65534) == 0; }
  ~AsNobody() {
    if (was_root_ && seteuid(0) != 0) std::terminate();
  }
  AsNobody(const AsNobody&) = delete;
  AsNobody& operator=(const AsNobody&) = delete;
  bool active() const { return active_; }

 private:
  bool was_root_;
  bool active_ = false;
};

std::string read_range(const InputFile& file, uint64_t offset, size_t size) {
  std::string bytes(size, '?');
  file.read_at(offset, std::as_writable_bytes(std::span(bytes)));
  return bytes;
}

TEST(InputFile, ReadsWhatIsThere) {
  const TempDir dir;
  write_file(dir / "a", "0123456789");
  const InputFile file(dir / "a");
  EXPECT_EQ(file.size(), 10u);
  EXPECT_EQ(file.name(), (dir / "a").string());
  EXPECT_EQ(read_range(file, 0, 10), "0123456789");
  EXPECT_EQ(read_range(file, 3, 4), "3456");
  EXPECT_EQ(read_range(file, 10, 0), "");
}

TEST(InputFile, MovesKeepTheFileOpen) {
  const TempDir dir;
  write_file(dir / "a", "first");
  write_file(dir / "b", "second");
  InputFile file(dir / "a");
  InputFile other(std::move(file));
  EXPECT_EQ(read_range(other, 0, 5), "first");
  other = InputFile(dir / "b");
  EXPECT_EQ(read_range(other, 0, 6), "second");
}

TEST(InputFile, ShortReadsNameOffsetExpectedAndActual) {
  const TempDir dir;
  write_file(dir / "a", "0123456789");
  const InputFile file(dir / "a");
  const std::string name = (dir / "a").string();
  EXPECT_EQ(error_of([&] { read_range(file, 8, 4); }), name + ": offset 8: got 2 bytes, expected 4 bytes");
  EXPECT_EQ(error_of([&] { read_range(file, 11, 1); }), name + ": offset 11: got 0 bytes, expected 1 bytes");
  EXPECT_EQ(error_of([&] { read_range(file, UINT64_MAX, 1); }),
            name + ": offset 18446744073709551615: got 0 bytes, expected 1 bytes");
}

TEST(InputFile, AFileThatShrinksIsAnErrorAndNotASignal) {
  const TempDir dir;
  write_file(dir / "a", std::string(100'000, 'x'));
  const InputFile file(dir / "a");
  fs::resize_file(dir / "a", 4'096);
  EXPECT_EQ(file.size(), 100'000u);
  expect_contains(error_of([&] { read_range(file, 0, 100'000); }), "got 4096 bytes, expected 100000 bytes");
}

TEST(InputFile, OnlyRegularFiles) {
  const TempDir dir;
  fs::create_directory(dir / "folder");
  ASSERT_EQ(mkfifo((dir / "pipe").c_str(), 0600), 0);
  fs::create_symlink(dir / "loop", dir / "loop");
  fs::create_symlink(dir / "file", dir / "link");
  write_file(dir / "file", "x");
  const auto open_error = [](const fs::path& path) { return error_of([&] { InputFile file(path); }); };
  expect_contains(open_error(dir / "missing"), "missing: cannot open: No such file or directory");
  expect_contains(open_error(dir / "folder"), "folder: got a directory, expected a regular file");
  expect_contains(open_error(dir / "pipe"), "pipe: got a pipe, expected a regular file");
  expect_contains(open_error("/dev/zero"), "/dev/zero: got a device, expected a regular file");
  expect_contains(open_error(dir / "loop"), "loop: cannot open: Too many levels of symbolic links");
  expect_contains(open_error(dir / "a\x1b[31m"), "a\\x1b[31m: cannot open");
  EXPECT_EQ(open_error(dir / "link"), "no error");
}

TEST(InputFile, PermissionIsNamed) {
  const TempDir dir;
  fs::permissions(dir.path(), fs::perms::all);
  write_file(dir / "secret", "x");
  fs::permissions(dir / "secret", fs::perms::none);
  const AsNobody nobody;
  if (!nobody.active()) GTEST_SKIP() << "cannot give up root here";
  expect_contains(error_of([&] { InputFile file(dir / "secret"); }), "secret: cannot open: Permission denied");
}

TEST(ReadTextFile, HasALimit) {
  const TempDir dir;
  write_file(dir / "a", "12345678");
  EXPECT_EQ(read_text_file(dir / "a", 8), "12345678");
  EXPECT_EQ(error_of([&] { read_text_file(dir / "a", 7); }),
            (dir / "a").string() + ": got 8 bytes, expected at most 7 bytes");
  write_file(dir / "empty", "");
  EXPECT_EQ(read_text_file(dir / "empty", 0), "");
}

TEST(OutputFile, AppearsWholeAtCommit) {
  const TempDir dir;
  write_file(dir / "out", "old");
  OutputFile file(dir / "out");
  file.write("new ");
  file.flush();
  EXPECT_EQ(read_file(dir / "out"), "old");
  EXPECT_EQ(read_file(dir / "out.partial"), "new ");
  file.write("text");
  file.commit();
  EXPECT_EQ(read_file(dir / "out"), "new text");
  EXPECT_FALSE(fs::exists(dir / "out.partial"));
  EXPECT_THROW(file.write("more"), ProgrammerError);
}

TEST(OutputFile, WithoutCommitThePartialFileStays) {
  const TempDir dir;
  {
    OutputFile file(dir / "out");
    EXPECT_EQ(file.partial_path(), dir / "out.partial");
    file.write("half");
  }
  EXPECT_FALSE(fs::exists(dir / "out"));
  EXPECT_EQ(read_file(dir / "out.partial"), "half");
  OutputFile again(dir / "out");
  again.commit();
  EXPECT_EQ(read_file(dir / "out"), "");
}

TEST(OutputFile, LargeOutputsArriveWhole) {
  const TempDir dir;
  std::string expected;
  OutputFile file(dir / "out");
  for (int i = 0; i < 500'000; ++i) {
    const std::string line = str_cat("line ", i, "\n");
    file.write(line);
    expected += line;
  }
  file.commit();
  EXPECT_TRUE(read_file(dir / "out") == expected);
}

TEST(OutputFile, RelativePathsWork) {
  const TempDir dir;
  const fs::path before = fs::current_path();
  fs::current_path(dir.path());
  OutputFile file("out");
  file.write("x");
  file.commit();
  fs::current_path(before);
  EXPECT_EQ(read_file(dir / "out"), "x");
}

TEST(OutputFile, ALinkIsFollowed) {
  const TempDir dir;
  fs::create_directory(dir / "elsewhere");
  write_file(dir / "elsewhere/target", "old");
  fs::create_symlink(dir / "elsewhere/target", dir / "out");
  OutputFile file(dir / "out");
  file.write("new");
  file.commit();
  EXPECT_TRUE(fs::is_symlink(dir / "out"));
  EXPECT_EQ(read_file(dir / "elsewhere/target"), "new");
}

TEST(OutputFile, AFullDiskIsAnError) {
  OutputFile file("/dev/full");
  EXPECT_TRUE(file.partial_path().empty());
  file.write("x");
  EXPECT_EQ(error_of([&] { file.flush(); }), "/dev/full: cannot write: No space left on device");
  EXPECT_TRUE(fs::is_character_file("/dev/full"));
  OutputFile other("/dev/full");
  other.write("x");
  EXPECT_EQ(error_of([&] { other.commit(); }), "/dev/full: cannot write: No space left on device");
}

// Also shows that nothing is committed that has not been written.
TEST(OutputFile, AfterAFailureWritingGoesOnWhereItStopped) {
  const TempDir dir;
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto ignored = std::signal(SIGXFSZ, SIG_IGN);
  const rlimit small = {.rlim_cur = 5, .rlim_max = before.rlim_max};
  OutputFile file(dir / "out");
  file.write("0123456789");
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  const std::string first = error_of([&] { file.flush(); });
  const std::string second = error_of([&] { file.commit(); });
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &before), 0);
  std::signal(SIGXFSZ, ignored);
  expect_contains(first, "out.partial: cannot write: File too large");
  expect_contains(second, "out.partial: cannot write: File too large");
  EXPECT_FALSE(fs::exists(dir / "out"));
  file.commit();
  EXPECT_EQ(read_file(dir / "out"), "0123456789");
}

TEST(OutputFile, LargeWritesReportAFullDiskWithoutFlush) {
  OutputFile file("/dev/full");
  const std::string megabyte(1 << 20, 'x');
  expect_contains(error_of([&] { file.write(megabyte); }), "No space left on device");
}

TEST(OutputFile, DevicesAreWrittenDirectly) {
  OutputFile file("/dev/null");
  file.write("x");
  file.commit();
  EXPECT_TRUE(fs::is_character_file("/dev/null"));
  EXPECT_FALSE(fs::exists("/dev/null.partial"));
}

TEST(OutputFile, BadPlacesAreErrorsAtOnce) {
  const TempDir dir;
  const auto open_error = [](const fs::path& path) { return error_of([&] { OutputFile file(path); }); };
  expect_contains(open_error(dir.path()), ": got a directory, expected a file to write");
  expect_contains(open_error(dir / "no/such/out"), "out.partial: cannot open for writing: No such file or directory");
  fs::create_symlink(dir / "elsewhere", dir / "trap.partial");
  expect_contains(open_error(dir / "trap"), "trap.partial: cannot open for writing: Too many levels of symbolic links");
  EXPECT_FALSE(fs::exists(dir / "elsewhere"));
  ASSERT_EQ(mkfifo((dir / "pipe.partial").c_str(), 0600), 0);
  expect_contains(open_error(dir / "pipe"), "pipe.partial: cannot open for writing");
}

TEST(OutputFile, AReadOnlyDirectoryIsNamed) {
  const TempDir dir;
  fs::permissions(dir.path(),
                  fs::perms::owner_read | fs::perms::owner_exec | fs::perms::others_read | fs::perms::others_exec);
  const AsNobody nobody;
  if (!nobody.active()) GTEST_SKIP() << "cannot give up root here";
  expect_contains(error_of([&] { OutputFile file(dir / "out"); }),
                  "out.partial: cannot open for writing: Permission denied");
}

TEST(OutputFile, HasOneWriter) {
  const TempDir dir;
  const auto second_writer = [&] { return error_of([&] { OutputClaim claim(dir / "out"); }); };
  OutputFile file(dir / "out");
  file.write("first");
  file.flush();
  expect_contains(second_writer(), "out.partial: got a file that another run is writing");
  EXPECT_EQ(read_file(dir / "out.partial"), "first") << "nothing was truncated";
  file.commit();
  EXPECT_EQ(second_writer(), "no error");
  EXPECT_EQ(read_file(dir / "out"), "first");
}

TEST(OutputFile, RefusesToRenameAnotherFile) {
  const TempDir dir;
  OutputFile file(dir / "out");
  file.write("mine");
  fs::remove(dir / "out.partial");
  write_file(dir / "out.partial", "somebody else's");
  expect_contains(error_of([&] { file.commit(); }), "out.partial: got another file than the one that was written");
  EXPECT_FALSE(fs::exists(dir / "out"));
  EXPECT_EQ(read_file(dir / "out.partial"), "somebody else's");
}

TEST(OutputClaim, LeavesNothingWhereNothingIsWritten) {
  const TempDir dir;
  {
    const OutputClaim claim(dir / "out");
    EXPECT_TRUE(fs::exists(dir / "out.partial"));
    EXPECT_FALSE(claim.has_earlier_partial());
  }
  EXPECT_FALSE(fs::exists(dir / "out.partial"));
  write_file(dir / "out.partial", "of an earlier run");
  { EXPECT_TRUE(OutputClaim(dir / "out").has_earlier_partial()); }
  EXPECT_EQ(read_file(dir / "out.partial"), "of an earlier run");
  EXPECT_EQ(error_of([] { OutputClaim claim(""); }), "output: got '', expected the name of a file");
}

TEST(OutputFile, KeepsThePermissionsOfWhatItReplaces) {
  const TempDir dir;
  for (const fs::perms perms : {fs::perms(0600), fs::perms(0644), fs::perms(0666)}) {
    write_file(dir / "out", "old");
    fs::permissions(dir / "out", perms);
    OutputFile file(dir / "out");
    EXPECT_EQ(fs::status(dir / "out.partial").permissions(), perms) << "from the first byte on";
    file.write("new");
    file.commit();
    EXPECT_EQ(fs::status(dir / "out").permissions(), perms);
  }
}

TEST(OutputFile, FollowsALinkToAFileThatIsNotThereYet) {
  const TempDir dir;
  fs::create_directory(dir / "deep");
  fs::create_symlink("deep/out", dir / "link");
  OutputFile file(dir / "link");
  file.write("new");
  file.commit();
  EXPECT_TRUE(fs::is_symlink(dir / "link"));
  EXPECT_EQ(read_file(dir / "deep" / "out"), "new");
  fs::create_symlink("loop", dir / "loop");
  expect_contains(error_of([&] { OutputFile loop(dir / "loop"); }), "loop: got links that lead in a circle");
}

TEST(OutputFile, AnOpenDescriptorIsSharedAndNotReplaced) {
  const TempDir dir;
  const int descriptor = open((dir / "out").c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
  ASSERT_GE(descriptor, 0);
  ASSERT_EQ(::write(descriptor, "before ", 7), 7);
  for (const std::string folder : {"/dev/fd/", "/proc/self/fd/"}) {
    EXPECT_TRUE(is_written_directly(folder + std::to_string(descriptor)));
    OutputFile file(folder + std::to_string(descriptor));
    EXPECT_TRUE(file.partial_path().empty());
    file.write("new ");
    file.commit();
  }
  ASSERT_EQ(::write(descriptor, "after", 5), 5);
  close(descriptor);
  EXPECT_EQ(read_file(dir / "out"), "before new new after");
  EXPECT_FALSE(is_written_directly(dir / "out"));
  EXPECT_TRUE(is_written_directly("/dev/null"));
}

TEST(StandIns, AreNamed) {
  const TempDir dir;
  const auto problem = [&](const std::string& text) {
    write_file(dir / "in", text);
    return error_of([&] { read_text_file(dir / "in", 1000); });
  };
  expect_contains(problem("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"),
                  "in: got a Git LFS pointer");
  expect_contains(problem("\n <!DOCTYPE HTML>\n"), "in: got an HTML page");
  expect_contains(problem("<html lang='en'>"), "in: got an HTML page");
  for (const char* const text : {"", "<unk>\n", "{}", "version 1"}) EXPECT_EQ(problem(text), "no error") << text;
}

TEST(OutputFile, GoesOnBehindWhatIsKept) {
  const TempDir dir;
  {
    OutputFile file(dir / "o");
    file.write("kept,dropped");
  }
  OutputFile file(dir / "o", 5);
  EXPECT_EQ(file.num_bytes(), 5u);
  file.write("new");
  EXPECT_EQ(file.num_bytes(), 8u);
  file.sync();
  EXPECT_EQ(read_file(dir / "o.partial"), "kept,new");
  file.commit();
  EXPECT_EQ(read_file(dir / "o"), "kept,new");
}

TEST(OutputFile, CannotGoOnBehindWhatIsNotThere) {
  const TempDir dir;
  expect_contains(error_of([&] { OutputFile(dir / "o", 5); }), "o.partial: cannot open for writing");
  write_file(dir / "o.partial", "1234");
  expect_contains(error_of([&] { OutputFile(dir / "o", 5); }), "o.partial: got 4 bytes, expected at least 5 bytes");
  EXPECT_EQ(read_file(dir / "o.partial"), "1234");
  expect_contains(error_of([&] { OutputFile("/dev/null", 0); }), "got a device or a pipe");
  std::filesystem::remove(dir / "o.partial");
  write_file(dir / "elsewhere", "12345678");
  std::filesystem::create_symlink(dir / "elsewhere", dir / "o.partial");
  expect_contains(error_of([&] { OutputFile(dir / "o", 5); }), "cannot open for writing");
  EXPECT_EQ(read_file(dir / "elsewhere"), "12345678");
}

TEST(AppendFile, AddsToWhatIsThere) {
  const TempDir dir;
  expect_contains(error_of([&] { AppendFile file(dir / "a"); }), "a: cannot open for writing");
  write_file(dir / "a", "one\n");
  AppendFile(dir / "a").append("two\n");
  AppendFile(dir / "a").append("three\n");
  EXPECT_EQ(read_file(dir / "a"), "one\ntwo\nthree\n");
  expect_contains(error_of([&] { AppendFile file(dir.path()); }), "cannot open for writing");
}

TEST(RemoveFile, RemovesWhatIsThereAndIsContentWithNothing) {
  const TempDir dir;
  write_file(dir / "a", "1");
  remove_file(dir / "a");
  EXPECT_FALSE(std::filesystem::exists(dir / "a"));
  EXPECT_NO_THROW(remove_file(dir / "a"));
  expect_contains(error_of([&] { remove_file(dir.path()); }), "cannot remove");
}

}  // namespace
}  // namespace tessera::io
