// Safetensors: named tensors in memory-mapped files, one file or the shards of `model.safetensors.index.json`.
// A file's header is checked completely before any tensor is handed out: its length, every name, dtype, shape and
// offset; the tensors must tile the data without holes or overlaps, as the format demands.
// It refuses dtypes below one byte and data that is not aligned to its element.

package import TamisRuntime

package enum TensorType: UInt8, Sendable, CaseIterable, BitwiseCopyable {
  case bool, u8, i8, f8E4M3, f8E5M2, f8E8M0
  case i16, u16, f16, bf16
  case i32, u32, f32
  case i64, u64, f64

  package var bytes: Int {
    switch self {
    case .bool, .u8, .i8, .f8E4M3, .f8E5M2, .f8E8M0: 1
    case .i16, .u16, .f16, .bf16: 2
    case .i32, .u32, .f32: 4
    case .i64, .u64, .f64: 8
    }
  }

  /// As the format writes it.
  package var name: StaticString {
    switch self {
    case .bool: "BOOL"
    case .u8: "U8"
    case .i8: "I8"
    case .f8E4M3: "F8_E4M3"
    case .f8E5M2: "F8_E5M2"
    case .f8E8M0: "F8_E8M0"
    case .i16: "I16"
    case .u16: "U16"
    case .f16: "F16"
    case .bf16: "BF16"
    case .i32: "I32"
    case .u32: "U32"
    case .f32: "F32"
    case .i64: "I64"
    case .u64: "U64"
    case .f64: "F64"
    }
  }
}

/// A tensor in a mapped file. Its bytes stay valid as long as the checkpoint it came from.
package struct StoredTensor {
  package let name: String
  package let type: TensorType
  package let shape: [Int]  // row-major; empty for a scalar
  package let bytes: UnsafeRawBufferPointer
  package let path: String
  package let offset: Int  // of the first byte in the file
}

package final class Checkpoint: Sendable {
  package static let shapeLimit = 8  // dimensions
  static let headerLimit = 100_000_000  // bytes, as the format's own library

  private let files: [MappedFile]
  private let table: TensorTable

  /// One file.
  package init(path: String, _ context: Context = .unmetered) throws(TamisError) {
    var table = TensorTable(context)
    files = [try Checkpoint.open(path, number: 0, into: &table)]
    self.table = table
  }

  /// `model.safetensors`, or where that is missing the shards that `model.safetensors.index.json` lists.
  package init(directory: String, _ context: Context = .unmetered) throws(TamisError) {
    var table = TensorTable(context)
    let single = "\(directory)/model.safetensors"
    if File.exists(single) {
      files = [try Checkpoint.open(single, number: 0, into: &table)]
    } else {
      files = try Checkpoint.openShards(of: directory, into: &table)
    }
    self.table = table
  }

  package var count: Int { table.records.count }

  /// The bytes of address space that the files take.
  package var mappedBytes: Int { files.reduce(0) { $0 &+ $1.bytes.count } }

  package func tensor(at index: Int) -> StoredTensor? {
    guard let record = table.records.element(at: index), Int(record.file) < files.count else { return nil }
    let file = files[Int(record.file)]
    guard record.begin >= 0, record.begin <= record.end, record.end <= file.bytes.count else { return nil }
    return StoredTensor(
      name: String(decoding: table.name(of: record), as: UTF8.self), type: record.type, shape: table.shape(of: record),
      bytes: UnsafeRawBufferPointer(rebasing: file.bytes[record.begin..<record.end]), path: file.path,
      offset: record.begin)
  }

  package func find(_ name: String) -> StoredTensor? {
    var name = name
    return name.withUTF8 { table.index(of: UnsafeRawBufferPointer($0)) }.flatMap { tensor(at: $0) }
  }

  /// The tensor of that name, which must have that shape.
  package func tensor(_ name: String, shape: [Int]) throws(TamisError) -> StoredTensor {
    guard let found = find(name) else {
      throw TamisError(.format, "\(files.first?.path ?? "checkpoint"): no tensor \"\(name)\"")
    }
    guard found.shape == shape else {
      throw TamisError(.format, "\(found.path): tensor \"\(name)\" has shape \(found.shape), expected \(shape)")
    }
    return found
  }

  // MARK: opening

  private static func open(
    _ path: String, number: Int, into table: inout TensorTable
  ) throws(TamisError) -> MappedFile {
    let file = try OpenFile(path)
    guard file.length >= 8 else {
      throw TamisError(.format, "\(path): \(file.length) bytes, a safetensors file has at least 8")
    }
    let context = table.context
    let prefix = try file.read(from: 0, count: 8, context)
    var length: UInt64 = 0
    for (position, byte) in prefix.elements.enumerated() { length |= UInt64(byte) << UInt64(position &* 8) }
    guard let headerLength = Int(exactly: length), headerLength <= headerLimit, headerLength <= file.length &- 8 else {
      throw TamisError(
        .format,
        "\(path): byte 0: a header of \(length) bytes; the file has \(file.length), the limit is \(headerLimit)")
    }
    let header = try JSONDocument(text: file.read(from: 8, count: headerLength, context), name: "\(path): header")
    try table.add(header, path: path, file: number, dataStart: headerLength &+ 8, fileLength: file.length)
    return try file.map()
  }

  private static func openShards(
    of directory: String, into table: inout TensorTable
  ) throws(TamisError) -> [MappedFile] {
    let path = "\(directory)/model.safetensors.index.json"
    guard File.exists(path) else {
      throw TamisError(.io, "\(directory): neither model.safetensors nor model.safetensors.index.json")
    }
    let map = try JSONDocument(path: path, table.context).root.required("weight_map")
    guard map.isObject else { throw map.failure("an object of tensor names and file names") }
    var files: [MappedFile] = []
    var numbers: [String: Int] = [:]
    var name = GrowableBuffer<UInt8>(table.context)
    for (key, value) in map.members {
      let shard = try value.string()
      if numbers[shard] == nil {
        guard isPlainFileName(shard), files.count < shardLimit else {
          throw value.failure("the name of a file in the same directory, of at most \(shardLimit)")
        }
        numbers[shard] = files.count
        files.append(try open("\(directory)/\(shard)", number: files.count, into: &table))
      }
      name.truncate(to: 0)
      try key.appendString(to: &name)
      let index = table.index(of: UnsafeRawBufferPointer(name.elements))
      guard let index, let record = table.records.element(at: index), Int(record.file) == numbers[shard] else {
        throw TamisError(
          .format, "\(directory)/\(shard): tensor \(quoted(name.elements)) is missing, \(path) places it there")
      }
    }
    return files
  }

  private static let shardLimit = 4096

  private static func isPlainFileName(_ name: String) -> Bool {
    !name.isEmpty && name != "." && name != ".." && !name.utf8.contains { $0 == UInt8(ascii: "/") || $0 == 0 }
  }
}

/// A name from a file as it may stand in a one-line message.
func quoted(_ name: UnsafeBufferPointer<UInt8>) -> String {
  var text = "\""
  for scalar in String(decoding: name.prefix(128), as: UTF8.self).unicodeScalars {
    text.unicodeScalars.append(scalar.properties.generalCategory == .control ? "?" : scalar)
  }
  return text + (name.count > 128 ? "…\"" : "\"")
}
