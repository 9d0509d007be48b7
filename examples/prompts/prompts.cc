#include "kvcache/examples/prompts/prompts.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace kvcache::examples {
namespace {

struct File {
  absl::string_view name;
  absl::string_view text;
};

// The files in texts/, without ".txt", in the order of their names.
constexpr File kFiles[] = {
#include "examples/prompts/texts.inc"
};

absl::string_view Text(absl::string_view name) {
  for (const File& file : kFiles) {
    if (file.name == name) return file.text;
  }
  return {};
}

std::vector<absl::string_view> Lines(absl::string_view text) {
  return absl::StrSplit(text, '\n', absl::SkipEmpty());
}

}  // namespace

std::vector<Prompt> DocumentPrompts() {
  std::vector<Prompt> prompts;
  for (absl::string_view name : {"support", "contract", "incident"}) {
    prompts.push_back(
        {name, std::string(Text(name)), Lines(Text(absl::StrCat(name, "_questions")))});
  }
  return prompts;
}

std::vector<Prompt> AgentPrompts() {
  std::vector<Prompt> prompts;
  for (absl::string_view name :
       {"flaky_test", "new_option", "slow_query", "migration", "crash_report"}) {
    prompts.push_back({name, absl::StrCat(AgentPreamble(), Text(absl::StrCat("agent_", name))),
                       Lines(Text(absl::StrCat("agent_", name, "_steps")))});
  }
  return prompts;
}

absl::string_view AgentPreamble() { return Text("agent"); }

}  // namespace kvcache::examples
