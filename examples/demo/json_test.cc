#include "kvcache/examples/demo/json.h"

#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "gtest/gtest.h"

namespace kvcache::examples {
namespace {

std::string Path(const std::string& name) { return testing::TempDir() + "/" + name; }

std::string Content(const std::string& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

TEST(JsonObjectTest, NestsObjectsAndKeepsTheOrder) {
  const JsonObject object = JsonObject()
                                .Add("b", 1)
                                .Add("a", JsonObject().Add("x", 0.25).Add("y", -3e20))
                                .Add("c", JsonObject());
  EXPECT_EQ(object.ToString(), R"({
  "b": 1,
  "a": {
    "x": 0.25,
    "y": -3e+20
  },
  "c": {}
})");
}

TEST(JsonObjectTest, ListsObjects) {
  const JsonObject objects[] = {JsonObject().Add("x", 1), JsonObject().Add("x", 2)};
  EXPECT_EQ(
      JsonObject().Add("list", objects).Add("none", absl::Span<const JsonObject>()).ToString(),
      R"({
  "list": [
    {
      "x": 1
    },
    {
      "x": 2
    }
  ],
  "none": []
})");
}

TEST(JsonObjectTest, EscapesTexts) {
  EXPECT_EQ(JsonObject().Add("text", "a \"b\" \\ \n").ToString(),
            "{\n  \"text\": \"a \\\"b\\\" \\\\ \\u000a\"\n}");
}

TEST(JsonObjectTest, WritesCountsInFullAndNoInfinities) {
  EXPECT_EQ(JsonObject().Add("n", 1234567890).ToString(), "{\n  \"n\": 1234567890\n}");
  const double infinity = std::numeric_limits<double>::infinity();
  EXPECT_EQ(JsonObject().Add("n", infinity).ToString(), "{\n  \"n\": null\n}");
}

TEST(JsonObjectTest, WritesListsAndStringsWithEscapes) {
  const std::vector<JsonObject> objects = {JsonObject().Add("x", 1), JsonObject().Add("x", 2)};
  const JsonObject object = JsonObject()
                                .Add("name", "a \"quoted\"\n\\path")
                                .Add("numbers", std::vector<double>{1, 0.5})
                                .Add("none", std::vector<JsonObject>())
                                .Add("objects", objects);
  EXPECT_EQ(object.ToString(), R"({
  "name": "a \"quoted\"\u000a\\path",
  "numbers": [1, 0.5],
  "none": [],
  "objects": [
    {
      "x": 1
    },
    {
      "x": 2
    }
  ]
})");
}

TEST(ResultFileTest, ANewFileFollowsTheUmask) {
  const mode_t umask_before = umask(027);
  const std::string path = Path("new.json");
  absl::StatusOr<ResultFile> file = ResultFile::Open(path);
  umask(umask_before);
  ASSERT_TRUE(file.ok()) << file.status();
  ASSERT_TRUE(file->Write("{}\n").ok());
  struct stat status;
  ASSERT_EQ(stat(path.c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777, 0640u);
  EXPECT_EQ(Content(path), "{}\n");
}

TEST(ResultFileTest, KeepsTheOldContentUntilTheNewOneIsWritten) {
  const std::string path = Path("old.json");
  std::ofstream(path) << "something that is longer";
  absl::StatusOr<ResultFile> file = ResultFile::Open(path);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(Content(path), "something that is longer");
  ASSERT_TRUE(file->Write("{}\n").ok());
  EXPECT_EQ(Content(path), "{}\n");
}

TEST(SameFileTest, KnowsAFileByAnyOfItsNames) {
  const std::string file = Path("same.json");
  const std::string absent = Path("absent.json");
  std::ofstream(file) << "{}";
  std::filesystem::remove(Path("hard.json"));
  std::filesystem::create_hard_link(file, Path("hard.json"));
  std::filesystem::remove(Path("link.json"));
  std::filesystem::create_symlink("absent.json", Path("link.json"));
  EXPECT_TRUE(SameFile(file, Path("./same.json")));
  EXPECT_TRUE(SameFile(file, Path("hard.json")));
  EXPECT_TRUE(SameFile(absent, Path("./absent.json")));
  EXPECT_TRUE(SameFile(absent, Path("link.json")));
  EXPECT_FALSE(SameFile(file, absent));
  EXPECT_FALSE(SameFile(absent, Path("missing/absent.json")));
  EXPECT_FALSE(SameFile("/dev/null", "/dev/null")) << "nothing there is overwritten";
}

TEST(ResultFileTest, SaysWhichPathCannotBeWrittenAndWhy) {
  const std::string path = Path("missing/result.json");
  const absl::StatusOr<ResultFile> file = ResultFile::Open(path);
  EXPECT_EQ(file.status().message(), "cannot open '" + path + "': No such file or directory");
}

}  // namespace
}  // namespace kvcache::examples
