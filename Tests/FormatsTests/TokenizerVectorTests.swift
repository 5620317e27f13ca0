// Every text of Vectors/cases.json through every tokenizer there: the ids and the decoded text must be those of the
// `tokenizers` package (see Vectors/make_tokenizer_vectors.py).

import TamisFormats
import TamisRuntime
import Testing

@Suite struct TokenizerVectorTests {
  static let files = ["deepseek", "gpt2", "llama3", "qwen", "o200k", "behaviors", "digits", "lookaround", "toy-v32"]

  static let groups: [String: JSONValue] = {
    guard let document = try? JSONDocument(path: Folder.vectors.appendingPathComponent("cases.json").path) else {
      return [:]
    }
    var groups: [String: JSONValue] = [:]
    for group in document.root.elements {
      guard let file = try? group.required("file").string() else { continue }
      groups[files.first { file.contains($0) } ?? ""] = group
    }
    return groups
  }()

  @Test(arguments: files) func sameIDs(_ name: String) throws {
    let group = try #require(Self.groups[name])
    let path = Folder.vectors.appendingPathComponent(try group.required("file").string()).path
    let tokenizer = try Tokenizer(path: path)
    let cases = try group.required("cases")
    #expect(cases.count > 150)
    for (index, example) in cases.elements.enumerated() {
      let unit = bytes(hex: try example.required("hex").string())
      let times = try example.required("times").integer()
      let text = Array(repeatElement(unit, count: times).joined())
      let expected = try ids(try example.required("ids"))
      let expectedPlain = try example.member("plain").map(ids) ?? expected
      let label = "\(name) case \(index): \(String(decoding: text.prefix(80), as: UTF8.self).debugDescription)"

      let encoded = try tokenizer.ids(text)
      #expect(encoded == expected, "\(label)")
      #expect(try tokenizer.ids(text, .init(treatsSpecialAsText: true)) == expectedPlain, "\(label)")

      let decoded = try tokenizer.bytes(encoded)
      let expectedText = try example.member("text").map { bytes(hex: try $0.string()) } ?? text
      #expect(String(decoding: decoded, as: UTF8.self).utf8.elementsEqual(expectedText), "\(label)")
    }
  }

  private func ids(_ value: JSONValue) throws -> [Int32] {
    try value.elements.map { Int32(try $0.integer(in: 0...1 << 22)) }
  }
}
