// The tokenizer beside the vectors: exact bytes both ways, streams, files that must be refused, damaged files, long and
// hostile texts, and memory that runs out at every allocation.

import Foundation
import TamisFormats
import TamisRuntime
import TamisTestSupport
import Testing

@Suite struct TokenizerTests {
  private func vectors(_ name: String) -> String { Folder.vectors.appendingPathComponent("\(name).json").path }

  /// The smallest useful tokenizer: all bytes, "ab" and "abc".
  private func small(
    preTokenizer: String = #"{"type":"ByteLevel","add_prefix_space":false,"use_regex":false}"#,
    added: String = "", merges: String = #""a b","ab c""#, more: String = "", model: String = ""
  ) -> String {
    var vocab = (0..<256).map { byte -> String in
      let visible = (0x21...0x7E).contains(byte) || (0xA1...0xAC).contains(byte) || (0xAE...0xFF).contains(byte)
      guard !visible else { return "\"\\u\(String(format: "%04x", byte))\":\(byte)" }
      let before = (0..<byte).filter {
        !((0x21...0x7E).contains($0) || (0xA1...0xAC).contains($0) || (0xAE...0xFF).contains($0))
      }.count
      return "\"\\u\(String(format: "%04x", 0x100 + before))\":\(byte)"
    }
    vocab += ["\"ab\":256", "\"abc\":257"]
    return """
      {"added_tokens":[\(added)],"normalizer":null,"pre_tokenizer":\(preTokenizer),"decoder":{"type":"ByteLevel"}\(more),
      "model":{"type":"BPE","vocab":{\(vocab.joined(separator: ","))},"merges":[\(merges)]\(model)}}
      """
  }

  private func tokenizer(_ text: String) throws -> Tokenizer { try Tokenizer(document(text)) }

  // MARK: bytes and streams

  @Test func everyByteComesBack() throws {
    let tokenizer = try tokenizer(small())
    for byte in 0..<256 { #expect(try tokenizer.bytes([Int32(byte)]) == [UInt8(byte)]) }
    #expect(try tokenizer.ids(Array("xabcab".utf8)) == [120, 257, 256])
    #expect(tokenizer.vocabularySize == 258)
    #expect(tokenizer.id(of: "abc") == 257)
    #expect(tokenizer.id(of: "abcd") == nil)
  }

  @Test func invalidTextIsReplacedAsPythonDoes() throws {
    let tokenizer = try tokenizer(small())
    // The first three: one replacement for each maximal invalid part.
    let cases: [([UInt8], String)] = [
      ([0x61, 0xF0, 0x9F, 0x98, 0x62], "a\u{FFFD}b"), ([0xE2, 0x28], "\u{FFFD}("), ([0xED, 0xA0, 0x80], "\u{FFFD}\u{FFFD}\u{FFFD}"),
      ([0xC0, 0x80], "\u{FFFD}\u{FFFD}"), ([0x61, 0xE4, 0xB8], "a\u{FFFD}"),
    ]
    for (text, repaired) in cases { #expect(try tokenizer.ids(text) == tokenizer.ids(Array(repaired.utf8))) }
  }

  @Test func decodingReportsUnknownIDs() throws {
    let tokenizer = try tokenizer(small())
    expectFailure(.argument, "id 258") { try tokenizer.bytes([97, 258]) }
    expectFailure(.argument, "id -1") { try tokenizer.bytes([-1]) }
    expectFailure(.argument) { try tokenizer.bytes([.max]) }
  }

  @Test func streamsHoldUnfinishedCharacters() throws {
    let text = "aé中👍🏽\u{301}z"
    for step in 1...5 {
      var stream = TextStream(.unmetered)
      var all: [UInt8] = []
      let source = Array(text.utf8)
      for start in stride(from: 0, to: source.count, by: step) {
        var out = GrowableBuffer<UInt8>(.unmetered)
        try source[start..<min(start + step, source.count)].withUnsafeBufferPointer { try stream.push($0, into: &out) }
        let part = Array(out.elements)
        #expect(String(validating: part, as: UTF8.self) != nil, "step \(step)")
        all += part
      }
      #expect(all == source)
    }
    // What never becomes a character is handed on at once, and an unfinished one at the end.
    var stream = TextStream(.unmetered)
    var out = GrowableBuffer<UInt8>(.unmetered)
    try [0xFF, 0xE4].withUnsafeBufferPointer { try stream.push($0, into: &out) }
    #expect(Array(out.elements) == [0xFF])
    try [0x41, 0xF0, 0x9F].withUnsafeBufferPointer { try stream.push($0, into: &out) }
    #expect(Array(out.elements) == [0xFF, 0xE4, 0x41])
    try stream.finish(into: &out)
    #expect(Array(out.elements) == [0xFF, 0xE4, 0x41, 0xF0, 0x9F])
  }

  // MARK: added tokens and templates

  @Test func addedTokens() throws {
    let tokenizer = try tokenizer(
      small(
        added: #"{"id":258,"content":"née","special":false,"normalized":false},{"id":300,"content":"<s>","special":true}"#,
        more: #"""
          ,"post_processor":{"type":"Sequence","processors":[{"type":"ByteLevel"},{"type":"TemplateProcessing",
          "single":[{"SpecialToken":{"id":"<s>","type_id":0}},{"Sequence":{"id":"A","type_id":0}},{"SpecialToken":{"id":"e","type_id":0}}],
          "special_tokens":{"<s>":{"id":"<s>","ids":[300],"tokens":["<s>"]},"e":{"id":"e","ids":[258,97],"tokens":["née","a"]}}}]}
          """#))
    #expect(try tokenizer.ids(Array("anéeb<s>".utf8)) == [300, 97, 258, 98, 300, 258, 97])
    let plain = Tokenizer.EncodingOptions(addsSpecialTokens: false, treatsSpecialAsText: true)
    #expect(try tokenizer.ids(Array("née<s>".utf8), plain) == [258, 60, 115, 62])
    // An added token decodes to its content, also where the byte alphabet would read it differently.
    #expect(try tokenizer.bytes([258]) == Array("née".utf8))
    #expect(try tokenizer.bytes([300, 97, 300], skipsSpecial: true) == [97])
    #expect(tokenizer.isSpecial(300))
    #expect(!tokenizer.isSpecial(258))
    #expect(tokenizer.vocabularySize == 301)
    expectFailure(.argument, "id 299") { try tokenizer.bytes([299]) }
  }

  // MARK: files

  @Test func refusals() throws {
    func refused(_ text: String, _ status: Status, _ part: String, at location: SourceLocation = #_sourceLocation) {
      expectFailure(status, part, sourceLocation: location) { try tokenizer(text) }
    }
    let plain = small()
    func normalizing(_ normalizer: String) -> String {
      plain.replacingOccurrences(of: "\"normalizer\":null", with: "\"normalizer\":\(normalizer)")
    }
    func sequence(_ parts: String) -> String { #"{"type":"Sequence","normalizers":[\#(parts)]}"# }
    refused(normalizing(#"{"type":"Lowercase"}"#), .unsupported, "normalizer Lowercase")
    refused(normalizing(sequence(#"{"type":"NFC"},{"type":"Prepend","prepend":"_"}"#)), .unsupported, "Prepend")
    refused(normalizing(sequence(sequence(sequence(sequence(sequence("")))))), .unsupported, "Sequence")
    refused(normalizing(sequence(Array(repeating: #"{"type":"NFC"}"#, count: 17).joined(separator: ","))), .format, "16")
    refused(normalizing("7"), .format, "type")
    refused(plain.replacingOccurrences(of: "\"type\":\"BPE\"", with: "\"type\":\"Unigram\""), .unsupported, "Unigram")
    refused(
      plain.replacingOccurrences(of: "\"decoder\":{\"type\":\"ByteLevel\"}", with: "\"decoder\":{\"type\":\"Metaspace\"}"),
      .unsupported, "Metaspace")
    refused(small(preTokenizer: #"{"type":"Metaspace"}"#), .unsupported, "Metaspace")
    refused(small(preTokenizer: #"{"type":"Sequence","pretokenizers":[]}"#), .unsupported, "ByteLevel")
    refused(small(preTokenizer: "null"), .format, "pre_tokenizer")
    refused(small(model: #","dropout":0.1"#), .unsupported, "dropout")
    refused(small(model: #","byte_fallback":true"#), .unsupported, "byte fallback")
    refused(small(model: #","end_of_word_suffix":"</w>""#), .unsupported, "suffix")
    refused(small(merges: #""a b c""#), .format, "two tokens")
    refused(small(merges: #""ab""#), .format, "two tokens")
    refused(small(merges: #""a z""#), .format, "a merge of tokens")
    refused(small(merges: #"["a","b","c"]"#), .format, "a string")
    refused(small(merges: "7"), .format, "a string")
    refused(small(added: #"{"id":97,"content":"x"}"#), .format, "has the ids")
    refused(small(added: #"{"id":97,"content":"new"}"#), .format, "given to two tokens")
    refused(small(added: #"{"id":258,"content":"n"},{"id":258,"content":"n"}"#), .format, "ids")
    refused(small(added: #"{"id":4194304,"content":"new"}"#), .format, "in 0...4194303")
    refused(small(added: #"{"id":-1,"content":"new"}"#), .format, "in 0...")
    refused(small(added: #"{"content":"new"}"#), .format, "\"id\"")
    refused(plain.replacingOccurrences(of: "\"ab\":256", with: "\"ab\":255"), .format, "255")
    refused("{}", .format, "decoder")
    refused("[]", .format, "decoder")
    _ = try tokenizer(plain)
    // DeepSeek-V3 writes its absent normalizer so.
    _ = try tokenizer(normalizing(sequence("")))
  }

  @Test(arguments: [
    #"a["#, #"^a"#, #"a$"#, #"\ba"#, #"\w+"#, #"(a)\1"#, #"(?<n>a)"#, #"(?i)a"#, #"(?m:a)"#, #"(?>a)"#, #"[a[b]]"#, #"[a&&b]"#, #"[[:alpha:]]"#,
    #"a{1,3}+"#, #"a{2}?"#, #"a{,2}"#, #"\p{L"#, #"\pL"#, #"\p{Nothing}"#, #"[\S]"#, #"\h"#, #"\R"#, #"\X"#, #"\K"#, #"\Qa\E"#, #"\xff"#,
    #"[\s-z]"#, #"(*ACCEPT)"#, #"(?R)"#, #"a)"#, #"(a"#, #"\"#, #"[]a]"#, #"*"#, #"\u12"#, #"\x{110000}"#,
  ])
  func unknownPatterns(_ pattern: String) throws {
    let escaped = pattern.replacingOccurrences(of: "\\", with: "\\\\")
    let file = small(
      preTokenizer:
        #"{"type":"Sequence","pretokenizers":[{"type":"Split","pattern":{"Regex":"\#(escaped)"},"behavior":"Isolated"},{"type":"ByteLevel","add_prefix_space":false}]}"#)
    expectFailure(.unsupported, "pattern") { try tokenizer(file) }
  }

  /// Cuts and changed bits: a tokenizer or an error, and one that loads can be used.
  @Test func damagedFiles() throws {
    let file = Array(try Data(contentsOf: URL(fileURLWithPath: vectors("behaviors"))))
    for length in stride(from: 0, to: file.count, by: 7) {
      expectFailure(.format) { try Tokenizer(document(bytes: Array(file[..<length]))) }
    }
    var loaded = 0
    for position in stride(from: 0, to: file.count, by: 3) {
      var changed = file
      changed[position] ^= UInt8(1 << (position / 3 % 8))
      guard let tokenizer = try? Tokenizer(document(bytes: changed)) else { continue }
      loaded += 1
      if let ids = try? tokenizer.ids(Array("Some text, 中文 == 12#3".utf8)) { _ = try tokenizer.bytes(ids) }
    }
    #expect(loaded > 0)
  }

  // MARK: hostile texts and patterns

  /// Exponential at one position, and linear at each of many positions.
  @Test(arguments: [("(?:a+a+)+[bc]", 5000), ("a*[bc]", 200_000)])
  func aPatternCannotHang(_ pattern: String, _ count: Int) throws {
    let file = small(
      preTokenizer:
        #"{"type":"Sequence","pretokenizers":[{"type":"Split","pattern":{"Regex":"\#(pattern)"},"behavior":"Isolated"},{"type":"ByteLevel","add_prefix_space":false}]}"#)
    let tokenizer = try tokenizer(file)
    expectFailure(.unsupported, "too many steps") { try tokenizer.ids(Array(repeating: 0x61, count: count)) }
    #expect(try tokenizer.ids(Array("xaab".utf8)).count == 3)
    // Far into a text, at a position that the free steps do not reach.
    let run = Array(repeating: UInt8(0x61), count: 2000)
    if count > 5000 { #expect(try tokenizer.ids([0x78] + run + [0x63, 0x78]).count == 2003) }
  }

  @Test func longTexts() throws {
    let tokenizer = try Tokenizer(path: vectors("deepseek"))
    for unit in ["a", " ", "\n ", "中", "<｜User", "1", "!", "e\u{301}"] {
      let text = Array(String(repeating: unit, count: 30_000).utf8)
      #expect(try tokenizer.bytes(tokenizer.ids(text)) == text)
    }
  }

  /// The same pieces again come from the cache: the text as a whole must give the ids of its parts.
  @Test func repeatedPieces() throws {
    let tokenizer = try Tokenizer(path: vectors("llama3"))
    let options = Tokenizer.EncodingOptions(addsSpecialTokens: false)
    let line = Array("the tokens, 中文 and the tokens of tokens\n".utf8)
    let once = try tokenizer.ids(line, options)
    let many = try tokenizer.ids(Array(repeatElement(line, count: 500).joined()), options)
    #expect(many == Array(repeatElement(once, count: 500).joined()))
  }

  @Test func oneTokenizerServesManyThreads() async throws {
    let tokenizer = try Tokenizer(path: vectors("deepseek"))
    let text = Array(String(repeating: "Some code: f(x) = 中文 12345\n", count: 200).utf8)
    let expected = try tokenizer.ids(text)
    try await withThrowingTaskGroup(of: [Int32].self) { group in
      for _ in 0..<8 { group.addTask { try tokenizer.ids(text) } }
      for try await ids in group { #expect(ids == expected) }
    }
  }

  // MARK: memory

  /// Allocation number n fails, for every n: an error each time, nothing leaks, and what was there before stays.
  @Test func everyAllocationMayFail() throws {
    let text = Array("Some text <|begin|> 中文 == 12#3 \u{FF}".utf8) + [0xFF]
    var failing = 0
    var succeeded = false
    while !succeeded, failing < 10_000 {
      let allocator = Allocator()
      allocator.fail(failing + 1..<failing + 2)
      let context = try Context.create(allocator.options)
      do {
        let tokenizer = try Tokenizer(path: vectors("behaviors"), context)
        var ids = GrowableBuffer<Int32>(context)
        try text.withUnsafeBytes { try tokenizer.encode($0, into: &ids) }
        var out = GrowableBuffer<UInt8>(context)
        try tokenizer.decode(ids.elements, skipsSpecial: false, into: &out)
        succeeded = true
      } catch {
        #expect((error as? TamisError)?.status == .memory, "allocation \(failing): \(error)")
      }
      #expect(allocator.bytesHeld == 0, "allocation \(failing)")
      failing += 1
    }
    #expect(succeeded && failing > 20)
  }
}
