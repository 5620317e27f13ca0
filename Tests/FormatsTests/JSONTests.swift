// The JSON reader: values come out as written, and everything that RFC 8259 or our limits forbid is an error that
// names its byte.

import TamisFormats
import TamisRuntime
import Testing

@Suite struct JSONTests {
  @Test func values() throws {
    let root = try document(
      #" {"a": [1, -2.5e-3, true, false, null], "text": "\"\\\/\b\f\n\r\té\u00e9\ud83d\udc4d", "n": 9223372036854775807, "e": {}} "#
    ).root
    let list = Array(try root.required("a").elements)
    #expect(list.count == 5)
    #expect(try list[0].integer() == 1)
    #expect(try list[1].double() == -0.0025)
    #expect(try list[2].bool())
    #expect(try !list[3].bool())
    #expect(list[4].isNull)
    #expect(try root.required("text").string() == "\"\\/\u{8}\u{C}\n\r\téé👍")
    #expect(try root.required("n").integer() == Int.max)
    #expect(try document("-9223372036854775808").root.integer() == Int.min)
    #expect(root.count == 4)
    #expect(root.member("missing") == nil)
    #expect(try root.required("e").count == 0)
    #expect(try root.members.map { try $0.key.string() } == ["a", "text", "n", "e"])
  }

  @Test func doubles() throws {
    for text in ["0", "-0", "1e308", "4.9e-324", "0.1", "123456789012345678901234567890", "1E+2", "-0.0e-0"] {
      #expect(try document(text).root.double() == Double(text), "\(text)")
    }
  }

  @Test(arguments: [
    ("", 0), (" ", 1), ("{", 1), ("[1,]", 3), ("[1 2]", 3), ("{\"a\" 1}", 5), ("{\"a\":1,}", 7), ("{a:1}", 1), ("01", 1),
    ("-", 1), ("1.", 2), (".5", 0), ("1e", 2), ("+1", 0), ("NaN", 0), ("[Infinity]", 1), ("tru", 0), ("nul", 0),
    ("\"abc", 0), ("\"\\x\"", 1), ("\"\\u12g4\"", 1), ("\"\\ud800\"", 1), ("\"\\udc00\\ud800\"", 1), ("\"\\ud800\\u0041\"", 1),
    ("\"\\u12\"", 1), ("\"a\u{1}b\"", 2), ("\"\n\"", 1), ("1 1", 2), ("{} x", 3), ("[1e999]", 1), ("-1e400", 0), ("\u{FEFF}1", 0),
    ("{\"a\":1,\"b\":2,\"a\":3}", 14), ("{\"a\":1,\"\\u0061\":3}", 8), ("[1}", 2), ("{\"a\":1]", 6), ("//x\n1", 0),
  ])
  func refused(_ text: String, _ offset: Int) {
    expectFailure(.format, "byte \(offset):") { try document(text) }
  }

  @Test func refusedBytes() {
    for bad: [UInt8] in [[0x80], [0xC0, 0xAF], [0xED, 0xA0, 0x80], [0xF5], [0xE2, 0x82], [0xF4, 0x90, 0x80, 0x80]] {
      expectFailure(.format, "byte 1:") { try document(bytes: [0x22] + bad + [0x22]) }
    }
    expectFailure(.format, "byte 0:") { try document(bytes: [0]) }
  }

  @Test func nesting() throws {
    let limit = JSONDocument.depthLimit
    func nested(_ depth: Int) -> String { String(repeating: "[", count: depth) + String(repeating: "]", count: depth) }
    _ = try document(nested(limit))
    expectFailure(.format, "byte \(limit):") { try document(nested(limit + 1)) }
    expectFailure(.format) { try document(String(repeating: "[", count: 1_000_000)) }
    expectFailure(.format) { try document(String(repeating: "{\"a\":", count: 1_000_000)) }
  }

  @Test func hugeNumbers() throws {
    expectFailure(.format, "64 bits") { try document("9223372036854775808").root.integer() }
    expectFailure(.format) { try document(String(repeating: "9", count: 400)) }
    expectFailure(.format) { try document("0." + String(repeating: "1", count: 100_000)) }
    expectFailure(.format) { try document("1.0").root.integer() }
    expectFailure(.format, "in 0...7") { try document("8").root.integer(in: 0...7) }
  }

  @Test func wrongKinds() throws {
    let root = try document(#"{"a": "x", "b": 1}"#).root
    expectFailure(.format, "byte 7:") { try root.required("a").integer() }
    expectFailure(.format) { try root.required("b").string() }
    expectFailure(.format) { try root.required("b").bool() }
    expectFailure(.format) { try root.required("c") }
    expectFailure(.format) { try root.required("b").required("c") }
    #expect(try Array(root.required("b").elements).isEmpty)
    #expect(try Array(root.required("b").members).isEmpty)
  }

  @Test func manyKeys() throws {
    let members = (0..<20_000).map { "\"key\($0)\":\($0)" }
    #expect(try document("{" + members.joined(separator: ",") + "}").root.count == 20_000)
    expectFailure(.format, "already has") {
      try document("{" + members.joined(separator: ",") + ",\"key7\":0}")
    }
  }

  /// Every truncation and every single-bit change of a text gives a document or an error, and never more.
  @Test func damage() throws {
    let text = Array(#"{"k\u00e9y": [1, -2.5e3, {"b": "ü\ud83d\udc4d"}], "t": true, "n": null, "f": false}"#.utf8)
    for length in 0..<text.count { expectFailure(.format) { try document(bytes: Array(text[..<length])) } }
    for position in text.indices {
      for bit in 0..<8 {
        var changed = text
        changed[position] ^= 1 << bit
        do {
          let document = try document(bytes: changed)
          visit(document.root)
        } catch {
          #expect((error as? TamisError)?.status == .format)
        }
      }
    }
  }

  private func visit(_ value: JSONValue) {
    _ = try? value.string()
    _ = try? value.double()
    for element in value.elements { visit(element) }
    for member in value.members {
      visit(member.key)
      visit(member.value)
    }
  }
}
