// Safetensors: the toy checkpoint and files of our own come back as written; whatever does not fit in a header, and
// every damaged file, is an error that names the tensor or the byte.

import Foundation
import TamisFormats
import TamisRuntime
import Testing

@Suite struct SafetensorsTests {
  /// A file with this header and that many bytes of data (0, 1, 2 ...).
  static func file(_ header: String, data: Int) -> [UInt8] {
    let text = Array(header.utf8)
    return withUnsafeBytes(of: UInt64(text.count).littleEndian) { Array($0) } + text
      + (0..<data).map { UInt8(truncatingIfNeeded: $0) }
  }

  /// Padded so that the data is aligned to 8 bytes.
  static func padded(_ header: String, data: Int) -> [UInt8] {
    file(header + String(repeating: " ", count: (8 - header.utf8.count % 8) % 8), data: data)
  }

  static let good =
    #"{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"b":{"dtype":"BF16","shape":[4],"data_offsets":[24,32]},"s":{"dtype":"F8_E4M3","shape":[],"data_offsets":[32,33]},"z":{"dtype":"I64","shape":[0,5],"data_offsets":[33,33]}}"#

  @Test func toyCheckpoint() throws {
    let checkpoint = try Checkpoint(directory: Folder.toy.path)
    #expect(checkpoint.count > 50)
    let embedding = try checkpoint.tensor("model.embed_tokens.weight", shape: [2048, 192])
    #expect(embedding.type == .bf16)
    #expect(embedding.bytes.count == 2048 * 192 * 2)
    expectFailure(.format, "[2048, 192], expected [1]") { try checkpoint.tensor("model.embed_tokens.weight", shape: [1]) }
    expectFailure(.format, "\"nothing\"") { try checkpoint.tensor("nothing", shape: []) }

    // The same bytes, found without our reader.
    let raw = try Data(contentsOf: Folder.toy.appendingPathComponent("model.safetensors"))
    let length = raw.prefix(8).enumerated().reduce(0) { $0 | Int($1.element) << (8 * $1.offset) }
    let header = try #require(
      JSONSerialization.jsonObject(with: raw[8..<(8 + length)]) as? [String: [String: Any]])
    #expect(checkpoint.count == header.count - (header["__metadata__"] == nil ? 0 : 1))
    for index in 0..<checkpoint.count {
      let tensor = try #require(checkpoint.tensor(at: index))
      let entry = try #require(header[tensor.name])
      let offsets = try #require(entry["data_offsets"] as? [Int])
      #expect(tensor.offset == 8 + length + offsets[0])
      #expect(tensor.shape == entry["shape"] as? [Int])
      #expect("\(tensor.type.name)" == entry["dtype"] as? String)
      #expect(tensor.bytes.elementsEqual(raw[(8 + length + offsets[0])..<(8 + length + offsets[1])]))
    }
  }

  @Test func readsWhatWasWritten() throws {
    let folder = try TemporaryFolder()
    let path = folder.path("small.safetensors")
    let floats: [Float] = [1, -2, 3.5, 0, .infinity, -0]
    let small: [Int8] = [-1, 2, 3]
    try floats.withUnsafeBytes { floats in
      try small.withUnsafeBytes { small in
        try SafetensorsWriter.write(
          [
            TensorToWrite(name: "sm\"all\\\n", type: .i8, shape: [3], bytes: small),
            TensorToWrite(name: "floats", type: .f32, shape: [2, 3], bytes: floats),
            TensorToWrite(name: "none", type: .f64, shape: [0], bytes: UnsafeRawBufferPointer(start: nil, count: 0)),
          ], metadata: [(key: "made by", value: "test\t\u{1}")], to: path)
        let checkpoint = try Checkpoint(path: path)
        #expect(checkpoint.count == 3)
        #expect(try checkpoint.tensor("floats", shape: [2, 3]).bytes.elementsEqual(floats))
        #expect(try checkpoint.tensor("sm\"all\\\n", shape: [3]).bytes.elementsEqual(small))
        #expect(try checkpoint.tensor("none", shape: [0]).type == .f64)
      }
    }
    #expect(try FileManager.default.contentsOfDirectory(atPath: folder.url.path) == ["small.safetensors"])
  }

  @Test func writerLeavesTheOldFileOnFailure() throws {
    let folder = try TemporaryFolder()
    let path = try folder.write([1, 2, 3], "old")
    let bytes: [UInt8] = [1, 2]
    bytes.withUnsafeBytes { bytes in
      let tensor = TensorToWrite(name: "a", type: .u8, shape: [2], bytes: bytes)
      expectFailure(.argument, "\"a\"") { try SafetensorsWriter.write([tensor, tensor], to: path) }
      let wrong = TensorToWrite(name: "b", type: .u8, shape: [3], bytes: bytes)
      expectFailure(.argument, "\"b\"") { try SafetensorsWriter.write([wrong], to: path) }
      let huge = TensorToWrite(name: "c", type: .u8, shape: [.max, 2], bytes: bytes)
      expectFailure(.argument) { try SafetensorsWriter.write([huge], to: path) }
      expectFailure(.io) { try SafetensorsWriter.write([tensor], to: folder.path("no/such/folder")) }
    }
    #expect(try Array(Data(contentsOf: URL(fileURLWithPath: path))) == [1, 2, 3])
    #expect(try FileManager.default.contentsOfDirectory(atPath: folder.url.path) == ["old"])
  }

  @Test func scalarsAndEmptyTensors() throws {
    let folder = try TemporaryFolder()
    let checkpoint = try Checkpoint(path: folder.write(Self.padded(Self.good, data: 33), "a"))
    #expect(checkpoint.count == 4)
    #expect(try checkpoint.tensor("s", shape: []).bytes.elementsEqual([32]))
    #expect(try checkpoint.tensor("z", shape: [0, 5]).bytes.isEmpty)
    #expect(try checkpoint.tensor("b", shape: [4]).bytes.elementsEqual(24..<32))
  }

  @Test(arguments: [
    (#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,7]}}"#, "\"a\": 7 bytes of data"),
    (#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,16]}}"#, "\"a\": its data_offsets"),
    (#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}"#, "\"a\": its data_offsets"),
    (#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[-8,0]}}"#, "\"a\": its data_offsets"),
    (#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0]}}"#, "\"a\": its data_offsets"),
    (#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8,8]}}"#, "\"a\": its data_offsets"),
    (#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,9223372036854775807]}}"#, "\"a\": its data_offsets"),
    (#"{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}}"#, "\"a\": its shape overflows"),
    (#"{"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}"#, "expected a number in 0"),
    (#"{"a":{"dtype":"F32","shape":[2.0],"data_offsets":[0,8]}}"#, "expected a whole number"),
    (#"{"a":{"dtype":"F32","shape":[1,1,1,1,1,1,1,1,2],"data_offsets":[0,8]}}"#, "\"a\": its shape"),
    (#"{"a":{"dtype":"F32","shape":2,"data_offsets":[0,8]}}"#, "\"a\": its shape"),
    (#"{"a":{"dtype":"F32","shape":[2]}}"#, "data_offsets"),
    (#"{"a":{"shape":[2],"data_offsets":[0,8]}}"#, "dtype"),
    (#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#, "the tensors end at byte"),
    (#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#, "leaves a hole"),
    (#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, "overlaps"),
    (#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#, "already has"),
    (#"{"a":7}"#, "expected an object"), (#"[]"#, "expected an object of tensors"), (#"{}"#, "the tensors end at byte"),
    (#"{"a"#, "byte 1"),
  ])
  func badHeaders(_ header: String, _ message: String) throws {
    let folder = try TemporaryFolder()
    let path = try folder.write(Self.padded(header, data: 8), "bad")
    expectFailure(.format, message) { try Checkpoint(path: path) }
  }

  @Test func unsupportedTypesAndAlignment() throws {
    let folder = try TemporaryFolder()
    let type = #"{"a":{"dtype":"F6_E2M3","shape":[8],"data_offsets":[0,8]}}"#
    var path = try folder.write(Self.padded(type, data: 8), "type")
    expectFailure(.unsupported, "\"a\": unknown dtype") { try Checkpoint(path: path) }
    let shifted =
      #"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"F32","shape":[1],"data_offsets":[1,5]}}"#
    path = try folder.write(Self.padded(shifted, data: 5), "shifted")
    expectFailure(.unsupported, "\"b\": starts at byte") { try Checkpoint(path: path) }
  }

  @Test func badLengths() throws {
    let folder = try TemporaryFolder()
    for length: UInt64 in [1, 100_000_001, .max, 1 << 63, UInt64(Int.max), UInt64(Int.max) - 7] {
      let path = try folder.write(withUnsafeBytes(of: length.littleEndian) { Array($0) }, "length")
      expectFailure(.format, "byte 0") { try Checkpoint(path: path) }
    }
    for size in 0..<8 {
      let path = try folder.write(Array(repeating: 0, count: size), "short")
      expectFailure(.format, "at least 8") { try Checkpoint(path: path) }
    }
    expectFailure(.io, "cannot open") { try Checkpoint(path: folder.path("missing")) }
    expectFailure(.io, "not a regular file") { try Checkpoint(path: folder.url.path) }
    expectFailure(.io, "neither") { try Checkpoint(directory: folder.url.path) }
    #expect(mkfifo(folder.path("pipe"), 0o600) == 0)
    expectFailure(.io, "not a regular file") { try Checkpoint(path: folder.path("pipe")) }
  }

  @Test func everyTruncationFails() throws {
    let folder = try TemporaryFolder()
    let file = Self.padded(Self.good, data: 33)
    for length in 0..<file.count {
      let path = try folder.write(Array(file[..<length]), "cut")
      expectFailure(.format) { try Checkpoint(path: path) }
    }
    let longer = try folder.write(file + [0], "long")
    expectFailure(.format, "the tensors end") { try Checkpoint(path: longer) }
  }

  /// A changed bit is an error, or a file whose every tensor still lies within it.
  @Test func everyBitFlip() throws {
    let folder = try TemporaryFolder()
    let file = Self.padded(Self.good, data: 33)
    let path = try folder.write(file, "flip")
    let handle = try #require(FileHandle(forUpdatingAtPath: path))
    for position in 0..<(file.count - 33) {
      for bit in 0..<8 {
        try handle.seek(toOffset: UInt64(position))
        try handle.write(contentsOf: [file[position] ^ 1 << bit])
        defer {
          try? handle.seek(toOffset: UInt64(position))
          try? handle.write(contentsOf: [file[position]])
        }
        guard let checkpoint = try? Checkpoint(path: path) else { continue }
        var sum = 0
        for index in 0..<checkpoint.count {
          let tensor = try #require(checkpoint.tensor(at: index))
          #expect(tensor.bytes.count == tensor.shape.reduce(tensor.type.bytes, *))
          sum += tensor.bytes.count
        }
        #expect(sum <= 33)
      }
    }
  }

  // MARK: shards

  private func writeShards(_ folder: TemporaryFolder, index: String) throws {
    _ = try folder.write(
      Self.padded(#"{"a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}}"#, data: 3), "one.safetensors")
    _ = try folder.write(
      Self.padded(#"{"b":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}"#, data: 2), "two.safetensors")
    _ = try folder.write(Array(index.utf8), "model.safetensors.index.json")
  }

  @Test func shards() throws {
    let folder = try TemporaryFolder()
    try writeShards(folder, index: #"{"metadata":{"total_size":5},"weight_map":{"a":"one.safetensors","b":"two.safetensors"}}"#)
    let checkpoint = try Checkpoint(directory: folder.url.path)
    #expect(checkpoint.count == 2)
    #expect(try checkpoint.tensor("a", shape: [3]).path.hasSuffix("one.safetensors"))
    #expect(try checkpoint.tensor("b", shape: [2]).bytes.elementsEqual([0, 1]))
  }

  @Test(arguments: [
    (#"{"weight_map":{"a":"two.safetensors"}}"#, Status.format, "\"a\" is missing"),
    (#"{"weight_map":{"c":"one.safetensors"}}"#, .format, "\"c\" is missing"),
    (#"{"weight_map":{"a":"three.safetensors"}}"#, .io, "three.safetensors"),
    (#"{"weight_map":{"a":"../one.safetensors"}}"#, .format, "same directory"),
    (#"{"weight_map":{"a":"one.safetensors\u0000x"}}"#, .format, "same directory"),
    (#"{"weight_map":{"a":7}}"#, .format, "a string"), (#"{"weight_map":[]}"#, .format, "an object"), (#"{}"#, .format, "weight_map"),
  ])
  func badIndex(_ index: String, _ status: Status, _ message: String) throws {
    let folder = try TemporaryFolder()
    try writeShards(folder, index: index)
    expectFailure(status, message) { try Checkpoint(directory: folder.url.path) }
  }

  @Test func sameTensorInTwoShards() throws {
    let folder = try TemporaryFolder()
    try writeShards(folder, index: #"{"weight_map":{"a":"one.safetensors","b":"copy.safetensors"}}"#)
    try FileManager.default.copyItem(atPath: folder.path("one.safetensors"), toPath: folder.path("copy.safetensors"))
    expectFailure(.format, "\"a\" exists twice") { try Checkpoint(directory: folder.url.path) }
  }
}
