// Owns the view of memory that every operator takes: what a tensor is, which ones are legal, which bytes it spans.
// It refuses everything that could be read or written out of bounds, and computes nothing.

package import TamisRuntime

/// The element types of tensors; raw values are those of the C header.
package enum DType: Int32, Sendable {
  case f32 = 1
  case f16 = 2
  case bf16 = 3
  case f8e4m3 = 4
  case i8 = 5
  case i32 = 6
  case mla656 = 7
  case index132 = 8

  package var name: StaticString {
    switch self {
    case .f32: "F32"
    case .f16: "F16"
    case .bf16: "BF16"
    case .f8e4m3: "F8E4M3"
    case .i8: "I8"
    case .i32: "I32"
    case .mla656: "MLA656"
    case .index132: "INDEX132"
    }
  }

  /// Bytes of one element; 1 for the two packed token layouts, whose strides are bytes.
  package var bytes: Int {
    switch self {
    case .f32, .i32: 4
    case .f16, .bf16: 2
    case .f8e4m3, .i8, .mla656, .index132: 1
    }
  }

  package var isFloat: Bool { self == .f32 || self == .f16 || self == .bf16 }
  package var isScaled: Bool { self == .f8e4m3 || self == .i8 }
  package var isPacked: Bool { self == .mla656 || self == .index132 }
}

/// FlashMLA's FP8 token: 512 E4M3, 4 floats, 64 BF16.
package enum MLA656 {
  package static let bytes = 656
  package static let latent = 512
  package static let rope = 64
  package static let dim = 576
  package static let scaleBlock = 128
  package static let scaleOffset = 512
  package static let ropeOffset = 528
}

/// DeepGEMM's block-planar index page: `tokens` x 128 E4M3, then `tokens` floats.
package enum Index132 {
  package static let dim = 128
  package static let bytes = 132
  package static let pageTokens = 64
}

/// A checked view. Strides are bytes; the last axis is contiguous.
package struct Tensor {
  package let data: UnsafeMutableRawPointer
  package let dtype: DType
  package let rank: Int
  package let shape: SIMD4<Int>
  package let stride: SIMD4<Int>
  /// 8-bit dtypes: one float for each `block` elements of the last axis; nil: 1.
  package let scale: UnsafeMutablePointer<Float>?
  package let block: Int
  /// Bytes from `data` to behind the last element.
  package let extent: Int

  /// `shape` and `stride` count elements as in the C header; all strides zero: row major.
  package init(
    _ name: StaticString, data: UnsafeMutableRawPointer?, dtype rawType: Int32, rank: Int, shape: SIMD4<Int>,
    stride given: SIMD4<Int>, scale: UnsafeMutablePointer<Float>?, block: Int
  ) throws(TamisError) {
    guard let dtype = DType(rawValue: rawType) else {
      throw TamisError(.argument, "\(name): dtype \(rawType) is unknown")
    }
    guard rank >= 1, rank <= 4 else { throw TamisError(.argument, "\(name): ndim is \(rank), expected 1 to 4") }
    guard block >= 0 else { throw TamisError(.argument, "\(name): block is negative") }
    var count = 1
    for axis in 0..<rank {
      guard shape[axis] >= 0 else { throw TamisError(.argument, "\(name): shape[\(axis)] is negative") }
      count = try Size.product(count, shape[axis])
    }
    var stride = SIMD4<Int>(repeating: 0)
    var extent = 0
    if dtype.isPacked {
      (stride, extent) = try Tensor.packedLayout(name, dtype, rank, shape, given, block)
    } else {
      let rowMajor = given == SIMD4<Int>(repeating: 0)
      var dense = dtype.bytes
      for axis in stride.indices.reversed() where axis < rank {
        if rowMajor {
          stride[axis] = dense
          dense = try Size.product(dense, max(shape[axis], 1))
        } else {
          guard given[axis] >= 0 else { throw TamisError(.argument, "\(name): stride[\(axis)] is negative") }
          stride[axis] = try Size.product(given[axis], dtype.bytes)
        }
      }
      if shape[rank - 1] > 1, stride[rank - 1] != dtype.bytes {
        throw TamisError(.argument, "\(name): stride[\(rank - 1)] must be 1 (the last axis is contiguous)")
      }
      if count > 0 {
        extent = dtype.bytes
        for axis in 0..<rank { extent = try Size.sum(extent, Size.product(shape[axis] - 1, stride[axis])) }
      }
    }
    guard let data = data ?? (count == 0 ? Tensor.nowhere : nil) else {
      throw TamisError(.argument, "\(name): data is NULL")
    }
    let alignment = dtype.isPacked ? 4 : dtype.bytes
    guard UInt(bitPattern: data) % UInt(alignment) == 0 else {
      throw TamisError(.argument, "\(name): data is not aligned to \(alignment) bytes")
    }
    if let scale, UInt(bitPattern: scale) % 4 != 0 {
      throw TamisError(.argument, "\(name): scale is not aligned to 4 bytes")
    }
    guard !UInt(bitPattern: data).addingReportingOverflow(UInt(extent)).overflow else {
      throw TamisError(.argument, "\(name): the view ends beyond the address space")
    }
    self.data = data
    self.dtype = dtype
    self.rank = rank
    self.shape = shape
    self.stride = stride
    self.scale = scale
    self.block = dtype.isScaled ? (block == 0 ? max(shape[rank - 1], 1) : block) : block
    self.extent = extent
  }

  private static func packedLayout(
    _ name: StaticString, _ dtype: DType, _ rank: Int, _ shape: SIMD4<Int>, _ given: SIMD4<Int>, _ block: Int
  ) throws(TamisError) -> (SIMD4<Int>, Int) {
    var stride = SIMD4<Int>(repeating: 0)
    let rows = shape[0]
    if dtype == .mla656 {
      guard (rank == 2 && shape[1] == MLA656.dim) || (rank == 3 && shape[1] == 1 && shape[2] == MLA656.dim) else {
        throw TamisError(.argument, "\(name): MLA656 has shape [m, 576] or [m, 1, 576]")
      }
      stride[0] = given[0] == 0 ? MLA656.bytes : given[0]
      guard stride[0] >= MLA656.bytes, stride[0] % 4 == 0 else {
        throw TamisError(.argument, "\(name): stride[0] of MLA656 is bytes, at least 656 and a multiple of 4")
      }
      return (stride, rows == 0 ? 0 : try Size.sum(Size.product(rows - 1, stride[0]), MLA656.bytes))
    }
    guard rank == 2, shape[1] == Index132.dim else {
      throw TamisError(.argument, "\(name): INDEX132 has shape [m, 128]")
    }
    let tokens = block == 0 ? Index132.pageTokens : block
    let pageBytes = try Size.product(tokens, Index132.bytes)
    stride[0] = given[0] == 0 ? pageBytes : given[0]
    guard stride[0] >= pageBytes, stride[0] % 4 == 0 else {
      throw TamisError(.argument, "\(name): stride[0] of INDEX132 is bytes, at least block * 132, a multiple of 4")
    }
    let pages = rows / tokens + (rows % tokens == 0 ? 0 : 1)
    return (stride, pages == 0 ? 0 : try Size.sum(Size.product(pages - 1, stride[0]), pageBytes))
  }

  /// A valid address for tensors without elements.
  private static var nowhere: UnsafeMutableRawPointer? { UnsafeMutableRawPointer(bitPattern: 64) }

  package var rows: Int { shape[0] }
  package var columns: Int { shape[rank - 1] }
  package var isEmpty: Bool { extent == 0 }

  /// Elements, already known not to overflow.
  package var count: Int {
    var product = 1
    for axis in 0..<rank { product &*= shape[axis] }
    return product
  }

  package func row(_ i: Int) -> UnsafeMutableRawPointer { data + i &* stride[0] }

  /// Where the scale of element [.., 0] of flattened row `i` lies (rows over all leading axes).
  package var scalesPerRow: Int { block == 0 ? 1 : (columns &+ block &- 1) / block }

  /// Addresses of the scale array (8-bit dtypes), one run of floats for each row over all leading axes.
  private var scaleSpan: AddressSpan {
    guard scale != nil, dtype.isScaled, extent > 0 else { return AddressSpan(scale, bytes: 0) }
    var rows = 1
    for axis in 0..<(rank &- 1) { rows &*= shape[axis] }
    return AddressSpan(scale, bytes: rows &* scalesPerRow &* 4)
  }

  private var span: AddressSpan { AddressSpan(data, bytes: extent) }

  /// Do the two views, or their scales, share a byte?
  package func overlaps(_ other: Tensor) -> Bool {
    overlaps(other.span) || overlaps(other.scaleSpan)
  }

  /// Does the view, or its scales, share a byte with other memory of the call?
  package func overlaps(_ other: AddressSpan) -> Bool {
    span.meets(other) || scaleSpan.meets(other)
  }

  /// Writing through a view whose rows overlap each other would make the result depend on the order of writing.
  package func requireWritable(_ name: StaticString) throws(TamisError) {
    guard !dtype.isPacked else { return }
    guard !span.meets(scaleSpan) else { throw TamisError(.argument, "\(name): its scale lies in its own data") }
    var below = dtype.bytes
    for axis in stride.indices.reversed() where axis < rank && shape[axis] > 1 {
      guard stride[axis] >= below else {
        throw TamisError(.argument, "\(name): an output's rows may not overlap")
      }
      below = stride[axis] &* shape[axis]
    }
  }
}

/// Memory that a call reads or writes.
package struct AddressSpan {
  private let start: UInt
  private let bytes: UInt

  /// `bytes` is not negative.
  package init(_ start: UnsafeRawPointer?, bytes: Int) {
    self.start = UInt(bitPattern: start)
    self.bytes = UInt(bitPattern: bytes)
  }

  func meets(_ other: AddressSpan) -> Bool {
    bytes > 0 && other.bytes > 0 && start < other.start &+ other.bytes && other.start < start &+ bytes
  }
}

/// Checks shared by the operators: each names the tensor that is wrong.
package func require(_ tensor: Tensor, _ name: StaticString, rank: Int) throws(TamisError) {
  guard tensor.rank == rank else {
    throw TamisError(.argument, "\(name): ndim is \(tensor.rank), expected \(rank)")
  }
}

package func require(_ tensor: Tensor, _ name: StaticString, axis: Int, is size: Int) throws(TamisError) {
  guard tensor.shape[axis] == size else {
    throw TamisError(.argument, "\(name): shape[\(axis)] is \(tensor.shape[axis]), expected \(size)")
  }
}

package func require(_ tensor: Tensor, _ name: StaticString, _ dtypes: DType...) throws(TamisError) {
  for dtype in dtypes where tensor.dtype == dtype { return }
  throw TamisError(.argument, "\(name): dtype \(tensor.dtype.name) is not accepted here")
}

/// No output may share memory with an array that the options point to.
package func requireApart<Element>(
  _ output: Tensor, _ name: StaticString, fromArray array: UnsafePointer<Element>?, count: Int,
  _ arrayName: StaticString
) throws(TamisError) {
  guard let array else { return }
  let bytes = try Size.product(count, MemoryLayout<Element>.stride)
  if output.overlaps(AddressSpan(array, bytes: bytes)) {
    throw TamisError(.argument, "\(name): shares memory with options->\(arrayName)")
  }
}

/// No output may share memory with an input or another output.
package func requireApart(
  _ output: Tensor, _ name: StaticString, from others: (Tensor?, StaticString)...
) throws(TamisError) {
  try output.requireWritable(name)
  for (other, otherName) in others {
    if let other, output.overlaps(other) {
      throw TamisError(.argument, "\(name): shares memory with \(otherName)")
    }
  }
}
