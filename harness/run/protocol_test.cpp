#include "harness/run/protocol.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace attnbench {
namespace {

using nlohmann::json;
using testing::HasSubstr;

Hello hello() {
  Declaration declaration;
  declaration.name = "eager";
  declaration.capabilities.devices = {"cpu"};
  return {kProtocol, "attnbench-worker", {"cpu", 0, std::nullopt, "a CPU"}, {declaration}, {{"threads", 2}}};
}

template <class Message>
std::string why_not_a(const json& line) {
  try {
    line.get<Message>();
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "it was read";
}

TEST(Protocol, MessagesComeBackAsTheyWereWritten) {
  const json greeting = hello();
  EXPECT_EQ(json(greeting.get<Hello>()), greeting);
  const json request = Request{7, "attention lq=1 d=64", {{"eager", Pass::forward}, {"eager", Pass::backward}}, true};
  EXPECT_EQ(json(request.get<Request>()), request);
  EXPECT_FALSE(request.contains("audit_repeats"));
  Request audit = request.get<Request>();
  EXPECT_EQ(audit.audit_repeats, 0);
  audit.audit_repeats = 100;
  EXPECT_EQ(json(audit).get<Request>().audit_repeats, 100);
  EXPECT_EQ(request["runs"], json::parse(R"([["eager","forward"],["eager","backward"]])"));
  const json stage = Stage{7, "eager", Pass::backward, "judge"};
  EXPECT_EQ(json(stage.get<Stage>()), stage);
}

TEST(Protocol, NamesTheFieldThatIsWrong) {
  json greeting = hello();
  greeting["protocol"] = 2;
  EXPECT_THAT(why_not_a<Hello>(greeting), HasSubstr("hello.protocol: expected 1, got 2"));
  greeting = hello();
  greeting["backends"][0].erase("name");
  EXPECT_NE(why_not_a<Hello>(greeting), "it was read");
  EXPECT_THAT(why_not_a<Hello>(json::array()), HasSubstr("hello: expected an object"));
  json request = Request{7, "attention lq=1 d=64", {{"eager", Pass::forward}}};
  request["runs"] = json::parse(R"([["eager","sideways"]])");
  EXPECT_THAT(why_not_a<Request>(request), HasSubstr("request.runs: expected"));
  json stage = Stage{7, "eager", Pass::backward, "judge"};
  stage["request"] = "seven";
  EXPECT_THAT(why_not_a<Stage>(stage), HasSubstr("stage.request: expected a whole number, got \"seven\""));
}

}  // namespace
}  // namespace attnbench
