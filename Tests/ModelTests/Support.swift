// What the tests of this room share: the trained toy checkpoint and its golden logits, models and caches in fp32,
// and evaluate with arrays.

import Foundation
import TamisCache
import TamisFormats
import TamisModel
import TamisOperators
import TamisRuntime
import Testing

enum Toy {
  static let folder = URL(fileURLWithPath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
    .appendingPathComponent("Fixtures/toy-v32")
  static var configText: String {
    get throws { try String(contentsOf: folder.appendingPathComponent("config.json"), encoding: .utf8) }
  }

  /// fp32 arithmetic and an fp32 cache, as the golden logits were made.
  static func exact(
    topK: Int? = nil, stepRows: Int = 128, threads: UInt32 = 2, isa: String? = nil, expands: Bool = true
  ) throws -> Fixture {
    var config = try ModelConfig(path: folder.appendingPathComponent("config.json").path)
    if let topK { config.index?.topK = topK }
    return try .exact(folder.path, config, stepRows: stepRows, threads: threads, isa: isa, expands: expands)
  }
}

/// The tiny random checkpoints of make_vectors.py.
enum Tiny {
  static func folder(_ family: String) -> URL {
    URL(fileURLWithPath: #filePath).deletingLastPathComponent().appendingPathComponent("Vectors/\(family)")
  }
}

/// The configuration of a folder with keys replaced, or removed where the new value is nil.
func config(_ folder: URL, _ changes: [String: Any?] = [:]) throws -> ModelConfig {
  let data = try Data(contentsOf: folder.appendingPathComponent("config.json"))
  var object = try #require(try JSONSerialization.jsonObject(with: data) as? [String: Any])
  for (key, value) in changes { object[key] = value }
  let text = try JSONSerialization.data(withJSONObject: object)
  return try text.withUnsafeBytes { try ModelConfig(JSONDocument(copying: $0, name: "config.json").root) }
}

/// A model, its context, and the options of its caches.
struct Fixture {
  let context: Context
  let model: Model
  var cacheOptions: CacheOptions

  static func exact(
    _ directory: String, _ config: ModelConfig, stepRows: Int = 128, threads: UInt32 = 2, isa: String? = nil,
    expands: Bool = true
  ) throws -> Fixture {
    var options = ModelOptions()
    options.widensWeights = true
    options.stepRows = stepRows
    options.mayExpand = expands
    return try Fixture(directory, config, options, threads: threads, isa: isa, kv: .f32, index: .f32)
  }

  init(
    _ directory: String, _ config: ModelConfig, _ options: ModelOptions = ModelOptions(), threads: UInt32 = 2,
    isa: String? = nil, kv: DType = .bf16, index: DType = .i8
  ) throws {
    var contextOptions = ContextOptions()
    contextOptions.threads = threads
    contextOptions.isaCap = isa
    try self.init(Context.create(contextOptions), directory, config, options, kv: kv, index: index)
  }

  init(
    _ context: Context, _ directory: String, _ config: ModelConfig, _ options: ModelOptions, kv: DType, index: DType
  ) throws {
    self.context = context
    model = try Model(config, Checkpoint(directory: directory), context, options)
    cacheOptions = model.cacheOptions
    cacheOptions.kvDType = kv
    if cacheOptions.indexDType != nil { cacheOptions.indexDType = index }
  }

  func makeCache() throws -> Cache { try Cache(context, cacheOptions) }

  /// Logits [tokens][vocabulary] of one new sequence, its tokens given in pieces of `chunk`.
  func logits(_ tokens: [Int32], chunk: Int? = nil) throws -> [[Float]] {
    let sequence = try TokenSequence.create(makeCache())
    var logits: [[Float]] = []
    var done = 0
    while done < tokens.count {
      let end = min(tokens.count, done + (chunk ?? tokens.count))
      logits += try model.logits([(sequence, Array(tokens[done..<end]))], .all)
      done = end
    }
    return logits
  }
}

extension Model {
  func logits(_ requests: [(TokenSequence, [Int32])], _ rows: LogitRows) throws -> [[Float]] {
    try logits(requests, EvaluateOptions(rows: rows))
  }

  func logits(
    _ requests: [(TokenSequence, [Int32])], _ options: EvaluateOptions = EvaluateOptions(),
    traces: [AttentionTrace?] = []
  ) throws -> [[Float]] {
    let count = options.rows == .all ? requests.reduce(0) { $0 + $1.1.count } : requests.count
    let memory = UnsafeMutablePointer<Float>.allocate(capacity: count * config.vocabulary)
    memory.initialize(repeating: .nan, count: count * config.vocabulary)
    defer { memory.deallocate() }
    let ids = requests.map { UnsafeMutableBufferPointer<Int32>.allocate(capacity: max($0.1.count, 1)) }
    defer { ids.forEach { $0.deallocate() } }
    var views: [Request] = []
    for (i, (buffer, request)) in zip(ids, requests).enumerated() {
      _ = buffer.initialize(from: request.1)
      let tokens = UnsafeBufferPointer(rebasing: buffer[..<request.1.count])
      views.append(Request(request.0, tokens, trace: i < traces.count ? traces[i] : nil))
    }
    try evaluate(
      views, options,
      logits: Tensor(
        "logits", data: memory, dtype: DType.f32.rawValue, rank: 2, shape: SIMD4(count, config.vocabulary, 0, 0),
        stride: SIMD4(repeating: 0), scale: nil, block: 0))
    return (0..<count).map { row in
      Array(UnsafeBufferPointer(start: memory + row * config.vocabulary, count: config.vocabulary))
    }
  }
}

/// Golden tensors as arrays.
struct Golden {
  private let file: Checkpoint

  init(_ path: String) throws { file = try Checkpoint(path: path) }

  func integers(_ name: String) throws -> [Int32] {
    let tensor = try #require(file.find(name))
    return Array(tensor.bytes.bindMemory(to: Int32.self))
  }

  /// [rows][columns]
  func rows(_ name: String) throws -> [[Float]] {
    let tensor = try #require(file.find(name))
    let all = Array(tensor.bytes.bindMemory(to: Float.self))
    let columns = try #require(tensor.shape.last)
    return stride(from: 0, to: all.count, by: columns).map { Array(all[$0..<$0 + columns]) }
  }
}

func argmax(_ row: [Float]) -> Int32 {
  var best = 0
  for i in row.indices where row[i] > row[best] { best = i }
  return Int32(best)
}

/// The largest difference of two rows, relative to the largest number of the second.
func difference(_ a: [Float], _ b: [Float]) -> Double {
  guard a.count == b.count else { return .infinity }
  let size = b.reduce(0) { max($0, abs($1)) }
  var worst = 0.0
  for (x, y) in zip(a, b) {
    let d = Double(abs(x - y) / size)
    worst = d.isNaN ? .infinity : max(worst, d)
  }
  return worst
}

func difference(_ a: [[Float]], _ b: [[Float]]) -> Double {
  guard a.count == b.count else { return .infinity }
  return zip(a, b).reduce(0) { max($0, difference($1.0, $1.1)) }
}

/// Fails unless `body` throws with that status and a one-line text that contains `part`.
func expectFailure(
  _ status: Status, _ part: String, sourceLocation: SourceLocation = #_sourceLocation, _ body: () throws -> Void
) {
  do {
    try body()
    Issue.record("no error", sourceLocation: sourceLocation)
  } catch {
    let error = error as? TamisError
    #expect(error?.status == status, "\(String(describing: error))", sourceLocation: sourceLocation)
    #expect(error?.message.contains(part) == true, "\(String(describing: error))", sourceLocation: sourceLocation)
    #expect(error?.message.contains("\n") == false, sourceLocation: sourceLocation)
  }
}

/// A folder that is removed with its content.
final class TemporaryFolder {
  let url = FileManager.default.temporaryDirectory.appendingPathComponent("tamis-\(UUID().uuidString)")
  init() throws { try FileManager.default.createDirectory(at: url, withIntermediateDirectories: true) }
  deinit { try? FileManager.default.removeItem(at: url) }
}

/// A tensor to be written, with bytes of its own.
struct Draft {
  var name: String
  var type: TensorType
  var shape: [Int]
  var bytes: [UInt8]
}

/// The tensors of a folder's checkpoint, changed by `change`, as the checkpoint of a new folder.
func rewritten(_ folder: URL, _ change: (Draft) throws -> [Draft]) throws -> TemporaryFolder {
  let source = try Checkpoint(directory: folder.path)
  var drafts: [Draft] = []
  for i in 0..<source.count {
    let tensor = try #require(source.tensor(at: i))
    drafts += try change(
      Draft(name: tensor.name, type: tensor.type, shape: tensor.shape, bytes: Array(tensor.bytes)))
  }
  let target = try TemporaryFolder()
  let copies = drafts.map { draft in
    let bytes = UnsafeMutableRawBufferPointer.allocate(byteCount: draft.bytes.count, alignment: 64)
    bytes.copyBytes(from: draft.bytes)
    return bytes
  }
  defer { copies.forEach { $0.deallocate() } }
  try SafetensorsWriter.write(
    zip(drafts, copies).map {
      TensorToWrite(name: $0.name, type: $0.type, shape: $0.shape, bytes: UnsafeRawBufferPointer($1))
    }, to: target.url.appendingPathComponent("model.safetensors").path)
  return target
}
