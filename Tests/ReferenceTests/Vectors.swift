// Reads the golden vectors of Tests/Vectors. It owns the little-endian reader and the comparison of results;
// it refuses to convert number formats with the functions under test.

import Foundation
import Testing

/// vectors.json and vectors.bin, found beside this folder.
struct Vectors {
  private struct Index: Decodable {
    let cases: [String: Case]
    let tensors: [String: Tensor]
  }
  private struct Tensor: Decodable {
    let dtype: String
    let shape: [Int]
    let offset: Int
  }
  /// The parameters a case may have.
  struct Case: Decodable {
    let block, n, tokens, queries, keys, heads, dim, hidden, latent, rotary, visible: Int?
    let keyHeads, keyDim, valueDim, firstPosition: Int?
    let powerOfTwo: Bool?
    let scale, softmaxScale: Double?
    let k: Counts?
  }
  /// One number or a list of them.
  struct Counts: Decodable {
    let values: [Int]
    init(from decoder: any Decoder) throws {
      let container = try decoder.singleValueContainer()
      values = try (try? container.decode([Int].self)) ?? [container.decode(Int.self)]
    }
  }

  private let index: Index
  private let data: [UInt8]

  init() throws {
    let folder = URL(fileURLWithPath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
      .appendingPathComponent("Vectors")
    data = try [UInt8](Data(contentsOf: folder.appendingPathComponent("vectors.bin")))
    let decoder = JSONDecoder()
    decoder.keyDecodingStrategy = .convertFromSnakeCase
    index = try decoder.decode(Index.self, from: Data(contentsOf: folder.appendingPathComponent("vectors.json")))
  }

  /// The names of the cases that begin so, in order.
  func names(_ prefix: String) -> [String] { index.cases.keys.filter { $0.hasPrefix(prefix) }.sorted() }

  func parameters(_ name: String) throws -> Case { try #require(index.cases[name]) }

  func has(_ name: String) -> Bool { index.tensors[name] != nil }

  func shape(_ name: String) throws -> [Int] { try #require(index.tensors[name]).shape }

  /// The elements as bit patterns of 1, 2, 4 or 8 bytes.
  func bits(_ name: String) throws -> [UInt64] {
    let tensor = try #require(index.tensors[name], "no tensor \(name)")
    let widths = ["U8": 1, "I8": 1, "F8_E4M3": 1, "U16": 2, "BF16": 2, "I32": 4, "F32": 4, "F64": 8]
    let width = try #require(widths[tensor.dtype])
    return (0..<tensor.shape.reduce(1, *)).map { i in
      (0..<width).reduce(UInt64(0)) { $0 | UInt64(data[tensor.offset + i * width + $1]) << UInt64(8 * $1) }
    }
  }

  func bytes(_ name: String) throws -> [UInt8] { try bits(name).map { UInt8(truncatingIfNeeded: $0) } }

  func halves(_ name: String) throws -> [UInt16] { try bits(name).map { UInt16(truncatingIfNeeded: $0) } }

  func integers(_ name: String) throws -> [Int] {
    let isByte = try #require(index.tensors[name]).dtype == "I8"
    return try bits(name).map {
      isByte ? Int(Int8(truncatingIfNeeded: $0)) : Int(Int32(truncatingIfNeeded: $0))
    }
  }

  /// The numbers of a tensor of any type but FP8, whose values are looked up in the golden table.
  func numbers(_ name: String) throws -> [Double] {
    switch try #require(index.tensors[name], "no tensor \(name)").dtype {
    case "F64": return try bits(name).map { Double(bitPattern: $0) }
    case "F32": return try bits(name).map { Double(Float(bitPattern: UInt32($0))) }
    case "BF16": return try bits(name).map { Double(Float(bitPattern: UInt32($0) << 16)) }
    case "F8_E4M3":
      let table = try numbers("e4m3.values")
      return try bytes(name).map { table[Int($0)] }
    default: return try integers(name).map(Double.init)
    }
  }
}

/// The largest difference of two results relative to `1 + |expected|`; equal infinities and two NaN differ by 0.
func largestDifference(_ actual: [Double], _ expected: [Double]) -> Double {
  guard actual.count == expected.count else { return .infinity }
  return zip(actual, expected).reduce(0) { largest, pair in
    let (a, e) = pair
    if a == e || (a.isNaN && e.isNaN) { return largest }
    let difference = (a - e).magnitude / (1 + e.magnitude)
    return difference.isNaN ? .infinity : max(largest, difference)
  }
}
