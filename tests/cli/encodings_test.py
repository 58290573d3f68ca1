"""Text that is compressed, in another encoding, or with old line ends is read as what it says; damaged data is told."""
import codecs
import gzip
import lzma
import shutil
import subprocess
import unittest

from cli_support import CliTest, TESSERA

CSV = 'id,text\n1,"A lovely, warm film"\n2,Un café très drôle\n3,Dull\n'


def zstd(data):
    return subprocess.run(["zstd", "-q", "-c"], input=data, stdout=subprocess.PIPE, check=True).stdout


class Same(CliTest):
    """Whatever the bytes, the labels are those of the same text in UTF-8; from a file and from a pipe."""

    def setUp(self):
        super().setUp()
        self.expected = self.classify("--input", self.write("a.csv", CSV), "--keep", "all", "--output-format", "csv").out
        self.assertEqual(len(self.expected.splitlines()), 4)
        self.assertIn("Un café très drôle", self.expected)

    def check(self, name, data, *more, code=0):
        for result in (self.classify("--input", self.write(name, data), "--keep", "all", "--output-format", "csv", *more),
                       self.classify("--input", "-", "--format", "csv", "--keep", "all", "--output-format", "csv", *more,
                                     stdin=data)):
            self.assert_code(result, code)
            self.assertEqual(result.out, self.expected)

    def test_compressed(self):
        data = CSV.encode()
        self.check("b.csv.gz", gzip.compress(data))
        self.check("c.csv.gz", gzip.compress(data[:30]) + gzip.compress(data[30:]) + b"\0" * 512)  # members, padding
        self.check("d.csv.xz", lzma.compress(data))
        self.check("e.csv", lzma.compress(data[:30]) + lzma.compress(data[30:]))  # whatever the name says
        self.check("f.csv.gz", data)
        self.check("g.CSV.GZ", gzip.compress(data))

    def test_zstd(self):
        if shutil.which("zstd") is None:
            self.skipTest("no zstd on this machine to compress with")
        data = CSV.encode()
        self.check("b.csv.zst", zstd(data))
        self.check("c.csv.zst", zstd(data[:30]) + zstd(data[30:]))
        self.assert_error(self.classify("--input", self.write("d.csv.zst", zstd(data * 999)[:-20])), 2, "zstd data that ends")

    def test_encodings(self):
        for encoding, mark in (("utf-16-le", codecs.BOM_UTF16_LE), ("utf-16-be", codecs.BOM_UTF16_BE),
                               ("utf-32-le", codecs.BOM_UTF32_LE), ("utf-32-be", codecs.BOM_UTF32_BE),
                               ("utf-8", codecs.BOM_UTF8)):
            data = mark + CSV.encode(encoding)
            self.check("b.csv", data)
            self.check("c.csv", data, "--encoding", encoding)
            self.check("d.csv.gz", gzip.compress(data))
        for encoding in ("latin-1", "cp1252", "utf-16-le", "utf-8", "UTF-32BE"):
            name = {"latin-1": "latin1"}.get(encoding, encoding)
            self.check("e.csv", CSV.encode(encoding), "--encoding", name)

    def test_line_ends(self):
        self.check("b.csv", CSV.replace("\n", "\r").encode())
        self.check("c.csv", CSV.replace("\n", "\r").encode().rstrip())
        self.check("d.csv", CSV.replace("\n", "\r\n").encode())
        self.check("e.csv", codecs.BOM_UTF16_LE + CSV.replace("\n", "\r").encode("utf-16-le"))
        texts = self.classify("--input", "-", "--show-text", stdin=b"A film\rDull\rGood").lines
        self.assertEqual([line.split("\t")[2] for line in texts], ["A film", "Dull", "Good"])

    def test_large_files_in_every_way(self):
        rows = "".join(f"{i},good film no {i}\n" for i in range(60_000))
        whole = ("id,text\n" + rows).encode()
        expected = self.classify("--input", self.write("a.csv", whole), "--keep", "id", "--output-format", "csv").out
        self.assertEqual(len(expected.splitlines()), 60_001)
        for name, data in (("gz", gzip.compress(whole, 1)), ("utf-16", whole.decode().encode("utf-16")),
                           ("cr", whole.replace(b"\n", b"\r"))):
            got = self.classify("--input", self.write("b.csv", data), "--keep", "id", "--output-format", "csv").out
            self.assertEqual(got, expected, name)


class Damaged(CliTest):
    def test_data_that_ends_too_early(self):
        lines = "".join(f"good film {i * 7919 % 100003}\n" for i in range(100_000)).encode()
        for name, data in (("a.txt.gz", gzip.compress(lines)), ("a.txt.xz", lzma.compress(lines))):
            out = self.folder / f"{name}.csv"
            path = self.write(name, data[:len(data) // 2])
            result = self.classify("--input", path, "--output", out)
            self.assert_error(result, 4, name, "data that ends too early", "--resume continues")
            self.assertFalse(out.exists())
            done = len((self.folder / f"{out.name}.partial").read_text().splitlines()) - 1
            self.assertGreater(done, 1000)

    def test_damaged_data(self):
        data = bytearray(gzip.compress(CSV.encode()))
        data[20] ^= 0xFF
        self.assert_error(self.classify("--input", self.write("a.csv.gz", bytes(data))), 2, "gzip data that is damaged")
        self.assert_error(self.classify("--input", self.write("b.csv.gz", gzip.compress(CSV.encode()) + b"rubbish")), 4,
                          "gzip data that is damaged")

    def test_what_is_no_character_fails_where_it_stands(self):
        data = "good film\nbad".encode("utf-16-le") + b"\x00\xd8" + " film\ndull\n".encode("utf-16-le")
        result = self.classify("--input", self.write("a.txt", b"\xff\xfe" + data), "--output-format", "csv")
        self.assert_code(result, 1)
        self.assertEqual([line.split(",")[1] != "" for line in result.lines[1:]], [True, False, True])
        self.assertIn("a.txt:2:", result.err)
        cut = self.classify("--input", self.write("b.txt", b"\xff\xfe" + "good\nfilm".encode("utf-16-le")[:-1]))
        self.assert_code(cut, 1)
        self.assertEqual(len(cut.lines), 2)

    def test_wrong_encodings_are_told(self):
        text = self.write("a.txt", "caf\xe9\n".encode("cp1252"))
        result = self.classify("--input", text)
        self.assert_code(result, 1)
        self.assertIn("--encoding cp1252", result.err)
        self.assert_code(self.classify("--input", text, "--encoding", "cp1252"), 0)
        for name in ("cp99999", "utf-8//IGNORE", "utf-8//TRANSLIT"):
            self.assert_error(self.classify("--input", text, "--encoding", name), 2, "--encoding: got", "iconv --list")
        marked = self.write("b.txt", "good\n".encode("utf-16"))
        self.assert_error(self.classify("--input", marked, "--encoding", "cp1252"), 2, "byte order mark of UTF-16",
                          "--encoding cp1252")
        self.assert_error(self.classify("--input", self.write("c.txt", codecs.BOM_UTF8 + b"x"), "--encoding", "cp1252"), 2,
                          "byte order mark of UTF-8")
        self.assert_error(self.classify("--input", self.ids, "--format", "ids", "--encoding", "cp1252"), 2, "--encoding",
                          "is no text")
        self.assert_error(self.classify("--text", "x", "--encoding", "cp1252"), 2, "--encoding", "no --input")

    def test_numbers_are_not_decompressed(self):
        path = self.write("ids.bin.gz", gzip.compress(self.ids.read_bytes()))
        self.assert_error(self.classify("--input", path, "--format", "ids"), 2, "a compressed file of numbers")


class Live(CliTest):
    def test_a_line_of_a_pipe_is_answered_before_the_next_comes(self):
        process = subprocess.Popen([TESSERA, "classify", "--quiet", "--model", self.model, "--input", "-", "--encoding",
                                    "utf-16-le"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for text in ("good\n", "bad film\n"):
            process.stdin.write(text.encode("utf-16-le"))
            process.stdin.flush()
            self.assertRegex(process.stdout.readline(), rb"^(positive|negative)\t")
        process.stdin.close()
        process.stdout.close()
        self.assertEqual(process.wait(30), 0)


if __name__ == "__main__":
    unittest.main()
