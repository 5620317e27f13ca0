// Matrices of Double in a context's memory and the little linear algebra that a closed form takes: Cholesky factors,
// triangular systems, products with a few columns, an orthonormal basis. Every sum has one order, so equal inputs give
// equal bits. It refuses what is not positive definite, and is not meant for much more than that.

import Glibc
import TamisRuntime

final class Matrix: @unchecked Sendable {
  let rows: Int
  let columns: Int
  /// [rows, columns]
  let start: UnsafeMutablePointer<Double>
  private let bytes: Int
  private let context: Context

  /// Zeros.
  init(_ context: Context, rows: Int, columns: Int) throws(TamisError) {
    bytes = try Size.product(rows, columns, 8)
    start = try context.allocate(bytes: bytes, alignment: 64, what: "fit").assumingMemoryBound(to: Double.self)
    start.update(repeating: 0, count: rows &* columns)
    self.rows = rows
    self.columns = columns
    self.context = context
  }

  deinit { context.release(start, bytes: bytes) }

  var count: Int { rows &* columns }

  func row(_ i: Int) -> UnsafeMutablePointer<Double> { start + i &* columns }

  /// `other` has the same sizes.
  func copy(_ other: Matrix) { start.update(from: other.start, count: min(count, other.count)) }

  func scale(by factor: Double) { for i in 0..<max(count, 0) { start[i] *= factor } }

  // MARK: Positive definite matrices

  /// Adds `part` of the largest eigenvalue to the diagonal and puts the Cholesky factor into the lower triangle; false:
  /// there is none, and the contents are of no use.
  func factor(ridge part: Double) throws(TamisError) -> Bool {
    let largest = try largestEigenvalue()
    guard largest.isFinite, largest > 1e-30 else { return false }
    for i in 0..<max(rows, 0) { row(i)[i] += part * largest }
    for i in 0..<max(rows, 0) {
      let mine = row(i)
      for j in 0..<i { mine[j] = (mine[j] - dot(mine, row(j), j)) / row(j)[j] }
      let left = mine[i] - dot(mine, mine, i)
      guard left.isFinite, left > 0 else { return false }
      mine[i] = left.squareRoot()
    }
    return true
  }

  /// By a hundred steps of power iteration from equal numbers.
  private func largestEigenvalue() throws(TamisError) -> Double {
    let vectors = try Matrix(context, rows: 2, columns: rows)
    let (from, to) = (vectors.row(0), vectors.row(1))
    to.update(repeating: 1, count: rows)
    var length = Double(rows).squareRoot()
    for _ in 0..<100 where length > 0 {
      for i in 0..<max(rows, 0) { from[i] = to[i] / length }
      for i in 0..<max(rows, 0) { to[i] = dot(row(i), from, rows) }
      length = dot(to, to, rows).squareRoot()
    }
    return length
  }

  /// L y = b in place, this being L.
  func solve(_ b: Matrix) {
    for i in 0..<max(rows, 0) {
      for j in 0..<i { add(-row(i)[j], b.row(j), to: b.row(i), b.columns) }
      divide(b.row(i), by: row(i)[i], b.columns)
    }
  }

  /// L' y = b in place.
  func solveTransposed(_ b: Matrix) {
    var i = rows &- 1
    while i >= 0 {
      divide(b.row(i), by: row(i)[i], b.columns)
      for j in 0..<i { add(-row(i)[j], b.row(i), to: b.row(j), b.columns) }
      i &-= 1
    }
  }

  // MARK: Products

  /// to = this times `b`.
  func multiply(_ b: Matrix, to: Matrix) {
    for i in 0..<max(rows, 0) {
      to.row(i).update(repeating: 0, count: to.columns)
      for j in 0..<max(columns, 0) { add(row(i)[j], b.row(j), to: to.row(i), b.columns) }
    }
  }

  /// to = this, transposed, times `b`.
  func multiplyTransposed(_ b: Matrix, to: Matrix) {
    to.start.update(repeating: 0, count: to.count)
    for i in 0..<max(rows, 0) {
      for j in 0..<max(columns, 0) { add(row(i)[j], b.row(i), to: to.row(j), b.columns) }
    }
  }

  // MARK: Columns

  /// Makes the columns orthonormal, in order (Gram and Schmidt, twice); one that depends on those before it becomes a
  /// random direction.
  func orthonormalise(_ random: inout SeededRandom) {
    for c in 0..<max(columns, 0) {
      var before = length(c)
      for _ in 0..<4 {
        for _ in 0..<2 {
          for d in 0..<c { subtract(d, from: c) }
        }
        let left = length(c)
        if left.isFinite, left > 1e-10 * before, left > 0 {
          for i in 0..<max(rows, 0) { row(i)[c] /= left }
          break
        }
        for i in 0..<max(rows, 0) { row(i)[c] = Double(random.normal()) }
        before = length(c)
      }
    }
  }

  private func length(_ c: Int) -> Double {
    var sum = 0.0
    for i in 0..<max(rows, 0) { sum += row(i)[c] * row(i)[c] }
    return sum.squareRoot()
  }

  private func subtract(_ d: Int, from c: Int) {
    var along = 0.0
    for i in 0..<max(rows, 0) { along += row(i)[c] * row(i)[d] }
    for i in 0..<max(rows, 0) { row(i)[c] -= along * row(i)[d] }
  }
}

/// Eight partial sums, so that the additions do not wait for each other.
private func dot(_ a: UnsafePointer<Double>, _ b: UnsafePointer<Double>, _ count: Int) -> Double {
  var sums = SIMD8<Double>(repeating: 0)
  let whole = count & ~7
  var i = 0
  while i < whole {
    sums +=
      UnsafeRawPointer(a + i).loadUnaligned(as: SIMD8<Double>.self)
      * UnsafeRawPointer(b + i).loadUnaligned(as: SIMD8<Double>.self)
    i &+= 8
  }
  var sum = sums.sum()
  while i < count {
    sum += a[i] * b[i]
    i &+= 1
  }
  return sum
}

@inline(__always)
private func add(_ factor: Double, _ from: UnsafePointer<Double>, to: UnsafeMutablePointer<Double>, _ count: Int) {
  for i in 0..<max(count, 0) { to[i] += factor * from[i] }
}

private func divide(_ numbers: UnsafeMutablePointer<Double>, by divisor: Double, _ count: Int) {
  for i in 0..<max(count, 0) { numbers[i] /= divisor }
}
