// Every text of Vectors/cases.json through every tokenizer there: the ids and the decoded text must be those of the
// `tokenizers` package (see Vectors/make_tokenizer_vectors.py).

import TamisFormats
import TamisRuntime
import Testing

@Suite struct TokenizerVectorTests {
  static let files = [
    "deepseek", "gpt2", "llama3", "qwen", "o200k", "behaviors", "digits", "lookaround", "nfc", "nfd", "nfkc", "nfkd",
    "forms", "toy-v32",
  ]

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

  /// Every character alone, and between a letter and marks that may change places with it.
  @Test func everyCharacterInEveryForm() throws {
    let path = Folder.vectors.appendingPathComponent("characters.json").path
    let forms = Array(try JSONDocument(path: path).root.elements)
    #expect(forms.count == 4)
    for form in forms {
      let normalizer = try Normalizer(document("{\"type\": \"\(form.required("form").string())\"}").root)
      var (alone, company) = (CRC32(), CRC32())
      var normal = GrowableBuffer<UInt8>(.unmetered)
      for value in UInt32(0)..<0x110000 {
        guard let scalar = Unicode.Scalar(value) else { continue }
        var text = GrowableBuffer<UInt8>(.unmetered)
        try UTF8Text.append(scalar, to: &text)
        alone.add(try normalizer.normalize(text.elements, into: &normal) ? normal.elements : text.elements)
        text.truncate(to: 0)
        for part in ["o", "\u{301}", scalar, "\u{323}", "\u{334}"] { try UTF8Text.append(part, to: &text) }
        company.add(try normalizer.normalize(text.elements, into: &normal) ? normal.elements : text.elements)
      }
      #expect(alone.value == (try form.required("alone").integer()))
      #expect(company.value == (try form.required("company").integer()))
    }
  }
}

private struct CRC32 {
  private static let table = (UInt32(0)..<256).map { (byte: UInt32) in
    (0..<8).reduce(byte) { rest, _ in rest & 1 == 1 ? rest >> 1 ^ 0xEDB8_8320 : rest >> 1 }
  }
  private var state: UInt32 = 0xFFFF_FFFF
  var value: Int { Int(~state) }

  mutating func add(_ bytes: UnsafeBufferPointer<UInt8>) {
    for byte in bytes { state = state >> 8 ^ CRC32.table[Int(UInt8(truncatingIfNeeded: state) ^ byte)] }
  }
}
