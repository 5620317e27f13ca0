// Shared by the tests of this folder: where the files lie, bytes from hex, temporary files, and what an error says.

import Foundation
import TamisFormats
import TamisRuntime
import Testing

enum Folder {
  static let tests = URL(fileURLWithPath: #filePath).deletingLastPathComponent()
  static let vectors = tests.appendingPathComponent("Vectors")
  static let toy = tests.deletingLastPathComponent().appendingPathComponent("Fixtures/toy-v32")
}

func document(_ text: String) throws -> JSONDocument { try document(bytes: Array(text.utf8)) }

func document(bytes: [UInt8]) throws -> JSONDocument {
  try bytes.withUnsafeBytes { try JSONDocument(copying: $0, name: "text") }
}

func bytes(hex: String) -> [UInt8] {
  let digits = Array(hex)
  return stride(from: 0, to: digits.count - 1, by: 2).map { UInt8(String(digits[$0...($0 + 1)]), radix: 16) ?? 0 }
}

extension Tokenizer {
  func ids(_ text: [UInt8], _ options: EncodingOptions = EncodingOptions()) throws -> [Int32] {
    var ids = GrowableBuffer<Int32>(.unmetered)
    try text.withUnsafeBytes { try encode($0, options, into: &ids) }
    return Array(ids.elements)
  }

  func bytes(_ ids: [Int32], skipsSpecial: Bool = false) throws -> [UInt8] {
    var out = GrowableBuffer<UInt8>(.unmetered)
    try ids.withUnsafeBufferPointer { try decode($0, skipsSpecial: skipsSpecial, into: &out) }
    return Array(out.elements)
  }
}

/// The error of a call that must fail.
func failure<Value: ~Copyable>(_ body: () throws -> Value) -> TamisError? {
  do {
    _ = try body()
    return nil
  } catch {
    return error as? TamisError
  }
}

/// Fails unless `body` throws with that status and a one-line text that contains `part`.
func expectFailure<Value: ~Copyable>(
  _ status: Status, _ part: String = "", sourceLocation: SourceLocation = #_sourceLocation,
  _ body: () throws -> Value
) {
  guard let error = failure(body) else {
    Issue.record("no error", sourceLocation: sourceLocation)
    return
  }
  #expect(error.status == status, "\(error.message)", sourceLocation: sourceLocation)
  #expect(part.isEmpty || error.message.contains(part), "\(error.message)", sourceLocation: sourceLocation)
  #expect(!error.message.contains("\n"), sourceLocation: sourceLocation)
}

/// A folder that is removed with its content.
final class TemporaryFolder {
  let url = FileManager.default.temporaryDirectory.appendingPathComponent("tamis-\(UUID().uuidString)")
  init() throws { try FileManager.default.createDirectory(at: url, withIntermediateDirectories: true) }
  deinit { try? FileManager.default.removeItem(at: url) }

  func path(_ name: String) -> String { url.appendingPathComponent(name).path }

  func write(_ bytes: [UInt8], _ name: String) throws -> String {
    try Data(bytes).write(to: url.appendingPathComponent(name))
    return path(name)
  }
}
