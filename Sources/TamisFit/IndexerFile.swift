// Indexers in safetensors files, by the tensor names of DeepSeek-V3.2: the indexers of all layers of a model in one
// file, or one layer's from any checkpoint that has them. Written in F32; read from F32, F16 or BF16. The rotary
// frequencies are no tensors there and come from the caller.

import TamisFormats
import TamisOperators
package import TamisRuntime

package enum IndexerFile {
  /// One indexer for each prefix, such as "model.layers.3.self_attn.indexer.".
  package static func save(
    _ indexers: [(prefix: String, indexer: LearnedIndexer)], to path: String, _ context: Context
  ) throws(TamisError) {
    var copies: [Floats] = []
    var tensors: [TensorToWrite] = []
    for (prefix, indexer) in indexers {
      for which in IndexerTensor.allCases {
        let dimensions = which.dimensions(indexer.shape)
        var count = 1
        for size in dimensions { count = try Size.product(count, size) }
        let copy = try Floats(context, count, "indexer")
        try indexer.read(which, out: try Tensor.matrix(copy.start, dimensions))
        copies.append(copy)
        tensors.append(
          TensorToWrite(
            name: "\(prefix)\(which.name)", type: .f32, shape: dimensions,
            bytes: UnsafeRawBufferPointer(start: copy.start, count: copy.bytes)))
      }
    }
    try withExtendedLifetime(copies) { () throws(TamisError) in
      try SafetensorsWriter.write(tensors, to: path, context)
    }
  }

  /// Sizes are those of the tensors. `rope` nil: half of the dims; `frequencies` of that many pairs.
  package static func load(
    _ context: Context, path: String, prefix: String, rope: Int?,
    frequencies: (_ rope: Int) throws(TamisError) -> [Float]
  ) throws(TamisError) -> LearnedIndexer {
    let checkpoint = try Checkpoint(path: path, context)
    func find(_ which: IndexerTensor) throws(TamisError) -> StoredTensor {
      let name = "\(prefix)\(which.name)"
      guard let tensor = checkpoint.find(name) else { throw TamisError(.format, "\(path): no tensor \"\(name)\"") }
      guard tensor.shape.count == which.rank else {
        throw TamisError(.format, "\(path): tensor \"\(name)\" has shape \(tensor.shape), expected \(which.rank) axes")
      }
      return tensor
    }
    let (query, key, weights) = (try find(.query), try find(.key), try find(.weights))
    let (heads, dim) = (weights.shape[0], key.shape[0])
    let shape: IndexerShape
    do {
      let rope = rope ?? dim / 4 &* 2
      shape = try IndexerShape(width: key.shape[1], features: query.shape[1], heads: heads, dim: dim, rope: rope)
    } catch {
      throw TamisError(error.status == .argument ? .format : error.status, "\(path): \(error.message)")
    }
    let indexer = try LearnedIndexer(context, shape, frequencies: frequencies(shape.rope), seed: 0)
    for which in IndexerTensor.allCases {
      let stored = try find(which)
      guard stored.shape == which.dimensions(shape) else {
        throw TamisError(
          .format, "\(path): tensor \"\(stored.name)\" has shape \(stored.shape), expected \(which.dimensions(shape))")
      }
      try read(stored, which, into: indexer)
    }
    return indexer
  }

  private static func read(
    _ stored: StoredTensor, _ which: IndexerTensor, into indexer: LearnedIndexer
  ) throws(TamisError) {
    let type: DType
    switch stored.type {
    case .f32: type = .f32
    case .f16: type = .f16
    case .bf16: type = .bf16
    default:
      throw TamisError(
        .unsupported, "\(stored.path): tensor \"\(stored.name)\" is \(stored.type.name), expected F32, F16 or BF16")
    }
    let count = stored.bytes.count / stored.type.bytes
    let copy = try Floats(indexer.context, count, "indexer")
    if let start = stored.bytes.baseAddress {
      loadFloats(type, start, nil, 1, count, to: copy.start, indexer.context.kernels)
    }
    do {
      try indexer.write([(which, try Tensor.matrix(copy.start, stored.shape))])
    } catch {
      throw TamisError(.format, "\(stored.path): \(error.message)")
    }
  }
}

extension IndexerTensor {
  fileprivate var rank: Int { self == .gain || self == .bias ? 1 : 2 }
}

extension Tensor {
  /// Floats of ours, row major.
  fileprivate static func matrix(_ start: UnsafeMutablePointer<Float>, _ shape: [Int]) throws(TamisError) -> Tensor {
    var axes = SIMD4<Int>(repeating: 0)
    for (axis, size) in shape.prefix(4).enumerated() { axes[axis] = size }
    return try Tensor(
      "indexer", data: UnsafeMutableRawPointer(start), dtype: DType.f32.rawValue, rank: shape.count, shape: axes,
      stride: SIMD4(repeating: 0), scale: nil, block: 0)
  }
}
