// Owns where rows of keys and values lie: a tensor of the caller, or pages of a cache. Index, select and attend see
// only this, so one implementation serves both. It refuses nothing (tensors and caches have been checked before).

package import TamisKernels
import TamisRuntime

/// `count` rows of `elements` numbers; row s lies in page s / pageTokens.
package struct Rows {
  package var dtype: DType
  package var count: Int
  package var elements: Int
  /// Address of a page: table[page], or base + page * pageStride without a table.
  package var base: UnsafeRawPointer
  package var table: UnsafePointer<UnsafeRawPointer>?
  package var pageTokens: Int
  package var pageStride: Int
  /// From a page's address to its first row; bytes from row to row.
  package var offset: Int
  package var stride: Int
  /// Scales of 8-bit rows: from a page's address (scales inside pages) or from `scales` (a separate array).
  package var scales: UnsafeRawPointer?
  package var scaleOffset: Int
  package var scaleStride: Int
  package var scaleBlock: Int
  package var hasScale: Bool
  /// From key head to key head within a row: bytes of numbers, bytes of scales.
  package var headStride = 0
  package var headScaleStride = 0
  /// log2(pageTokens) where that is a whole number, else -1: a division for each gathered row would show.
  private let pageShift: Int

  package init(
    dtype: DType, count: Int, elements: Int, base: UnsafeRawPointer, table: UnsafePointer<UnsafeRawPointer>?,
    pageTokens: Int, pageStride: Int, offset: Int, stride: Int, scaleOffset: Int?, scaleStride: Int, scaleBlock: Int
  ) {
    self.dtype = dtype
    self.count = count
    self.elements = elements
    self.base = base
    self.table = table
    self.pageTokens = pageTokens
    self.pageStride = pageStride
    self.offset = offset
    self.stride = stride
    self.scales = nil
    self.scaleOffset = scaleOffset ?? 0
    self.scaleStride = scaleStride
    self.scaleBlock = scaleBlock
    self.hasScale = scaleOffset != nil
    pageShift = Rows.shift(pageTokens)
  }

  private static func shift(_ tokens: Int) -> Int {
    tokens > 0 && tokens & (tokens &- 1) == 0 ? tokens.trailingZeroBitCount : -1
  }

  /// The rows of a tensor [m, d], or of key head 0 of a tensor [m, g, d].
  package init(_ tensor: Tensor) {
    let heads = tensor.rank == 3 && !tensor.dtype.isPacked ? tensor.shape[1] : 1
    var tokens = 1 &<< 62  // one page
    if tensor.dtype == .index132 { tokens = tensor.block == 0 ? Index132.pageTokens : tensor.block }
    pageTokens = tokens
    pageShift = Rows.shift(tokens)
    dtype = tensor.dtype
    count = tensor.shape[0]
    elements = tensor.columns
    base = UnsafeRawPointer(tensor.data)
    table = nil
    pageStride = 0
    offset = 0
    headStride = heads > 1 ? tensor.stride[1] : 0
    stride = tensor.stride[0]
    scales = nil
    scaleOffset = 0
    scaleStride = 0
    scaleBlock = 0
    hasScale = false
    switch tensor.dtype {
    case .f8e4m3, .i8:
      scaleBlock = tensor.block
      if let scale = tensor.scale {
        let perRow = tensor.scalesPerRow
        hasScale = true
        scales = UnsafeRawPointer(scale)
        scaleStride = heads &* perRow &* 4
        headScaleStride = perRow &* 4
      }
    case .index132:
      dtype = .f8e4m3
      pageStride = tensor.stride[0]
      stride = Index132.dim
      hasScale = true
      scaleOffset = pageTokens &* Index132.dim
      scaleStride = 4
      scaleBlock = Index132.dim
    default: break
    }
  }

  @inline(__always)
  package func page(_ page: Int) -> UnsafeRawPointer {
    if let table { return table[page] }
    return base + page &* pageStride
  }

  /// The same rows of key head `head`.
  package func head(_ head: Int) -> Rows {
    var rows = self
    rows.offset &+= head &* headStride
    if let scales { rows.scales = scales + head &* headScaleStride }
    rows.scaleOffset &+= head &* headScaleStride
    return rows
  }

  @inline(__always)
  private func pageOf(_ s: Int) -> Int { pageShift >= 0 ? s &>> pageShift : s / pageTokens }

  /// The row behind the last one of the page that holds row s.
  @inline(__always)
  package func endOfPage(_ s: Int) -> Int { (pageOf(s) &+ 1) &* pageTokens }

  @inline(__always)
  package func row(_ s: Int) -> UnsafeRawPointer {
    let p = pageOf(s)
    return page(p) + (offset &+ (s &- p &* pageTokens) &* stride)
  }

  /// Where the scales of row s begin; nil: all 1.
  @inline(__always)
  package func rowScale(_ s: Int) -> UnsafePointer<Float>? {
    guard hasScale else { return nil }
    if let scales { return (scales + s &* scaleStride).assumingMemoryBound(to: Float.self) }
    let p = pageOf(s)
    let at = scaleOffset &+ (s &- p &* pageTokens) &* scaleStride
    return (page(p) + at).assumingMemoryBound(to: Float.self)
  }

  /// Bytes of one row with its scales.
  package var bytesPerRow: Int {
    if dtype == .mla656 { return MLA656.bytes }
    let scaleBytes = hasScale && scaleBlock > 0 ? (elements &+ scaleBlock &- 1) / scaleBlock &* 4 : 0
    return elements &* dtype.bytes &+ scaleBytes
  }

  /// Expands row s to bfloat16 (the packed and 8-bit formats).
  @inline(__always)
  func expand(_ s: Int, to out: UnsafeMutablePointer<UInt16>, _ kernels: UnsafePointer<tk_table>) {
    let source = row(s)
    if dtype == .mla656 {
      let scale = (source + MLA656.scaleOffset).assumingMemoryBound(to: Float.self)
      kernels.pointee.bf16_from_e4m3(
        source.assumingMemoryBound(to: UInt8.self), scale, Int64(MLA656.scaleBlock), Int64(MLA656.latent), out)
      UnsafeMutableRawPointer(out + MLA656.latent).copyMemory(
        from: source + MLA656.ropeOffset, byteCount: MLA656.rope &* 2)
    } else if dtype == .i8 {
      kernels.pointee.bf16_from_i8(
        source.assumingMemoryBound(to: Int8.self), rowScale(s), Int64(scaleBlock), Int64(elements), out)
    } else {
      kernels.pointee.bf16_from_e4m3(
        source.assumingMemoryBound(to: UInt8.self), rowScale(s), Int64(scaleBlock), Int64(elements), out)
    }
  }
}

/// n numbers of a row of any unpacked dtype as floats. `scale` is the row's first scale (8-bit dtypes).
@inline(__always)
package func loadFloats(
  _ dtype: DType, _ source: UnsafeRawPointer, _ scale: UnsafePointer<Float>?, _ block: Int, _ n: Int,
  to out: UnsafeMutablePointer<Float>, _ kernels: UnsafePointer<tk_table>
) {
  switch dtype {
  case .bf16: kernels.pointee.f32_from_bf16(source.assumingMemoryBound(to: UInt16.self), Int64(n), out)
  case .f16: kernels.pointee.f32_from_f16(source.assumingMemoryBound(to: UInt16.self), Int64(n), out)
  case .f8e4m3: kernels.pointee.f32_from_e4m3(source.assumingMemoryBound(to: UInt8.self), scale, Int64(block), Int64(n), out)
  case .i8: kernels.pointee.f32_from_i8(source.assumingMemoryBound(to: Int8.self), scale, Int64(block), Int64(n), out)
  default: UnsafeMutableRawPointer(out).copyMemory(from: source, byteCount: n &* 4)
  }
}

/// n floats into a row of F32, F16 or BF16.
@inline(__always)
package func storeFloats(
  _ source: UnsafePointer<Float>, _ n: Int, as dtype: DType, to out: UnsafeMutableRawPointer, _ kernels: UnsafePointer<tk_table>
) {
  switch dtype {
  case .bf16: kernels.pointee.bf16_from_f32(source, Int64(n), out.assumingMemoryBound(to: UInt16.self))
  case .f16: kernels.pointee.f16_from_f32(source, Int64(n), out.assumingMemoryBound(to: UInt16.self))
  default: out.copyMemory(from: source, byteCount: n &* 4)
  }
}
