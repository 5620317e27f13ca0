/* exp over a vector of floats and the two helpers it stands on, for the headers that are compiled once for each
 * instruction set. The includer defines TK_INLINE, TK_FMA(a, b, c), vf (floats) and vi (int32 lanes of the same width)
 * first. */
#ifndef TAMIS_EXPONENTIAL_H
#define TAMIS_EXPONENTIAL_H

TK_INLINE vf broadcast(float x) {
  return x - (vf){0}; /* not +: -0 must stay -0 */
}

TK_INLINE vf chosen(vi mask, vf yes, vf no) { return (vf)((mask & (vi)yes) | (~mask & (vi)no)); }

/* exp(x) for x <= 0, relative error below 2^-23 (1 + |x| / 2): what |x| adds, p takes away again. 2^f on
 * [-1/2, 1/2] is a minimax polynomial with constant term 1, so exp(0) is 1. Below 2^-126 the result is 0. */
TK_INLINE vf exponential(vf x) {
  const vf t = x * 1.44269504f;
  const vf shifted = t + 12582912.0f; /* 1.5 * 2^23: the low bits now hold t rounded to an integer */
  const vf f = t - (shifted - 12582912.0f);
  vf y = TK_FMA(f, broadcast(0.00015345812426f), broadcast(0.00133999309037f));
  y = TK_FMA(y, f, broadcast(0.00961848907173f));
  y = TK_FMA(y, f, broadcast(0.05550328642130f));
  y = TK_FMA(y, f, broadcast(0.24022646248341f));
  y = TK_FMA(y, f, broadcast(0.69314718246460f));
  y = TK_FMA(y, f, broadcast(1.0f));
  y = y * (vf)(((vi)shifted << 23) + 0x3f800000);
  return chosen((vi)(t < -126.0f), (vf){0}, y);
}
#endif
