/* Exact column sums of softmax attention without the N x N matrix, and the small dense pieces beside it.
 * Plain C called through ctypes; compiled when the package is installed and optional: _blocks.py computes the same
 * with torch. OpenMP symbols are left unresolved on purpose, so that the loader takes torch's own thread pool. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define HIDDEN -1e4f /* an additive mask at or below this hides the key (as in measure/_visibility.py) */
#define GRAM_BLOCK 64
#define FLOOR -87.0f /* exp underflows below */

struct head {
  const float *q, *k, *lse, *bias;
  float *entropy;
  int64_t sq, sk, sb;
  int d, nk, causal, offset;
  float scale;
};

#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
#define ISA(name) JOIN(name, SUFFIX)

#if defined(__x86_64__) && defined(__GNUC__)
#define SUFFIX _avx512
#define TARGET __attribute__((target("avx512f,fma")))
#define LANES 16
#define ROWS 12
#include "_native_tile.h"
#undef SUFFIX
#undef TARGET
#undef LANES
#undef ROWS
#define SUFFIX _avx2
#define TARGET __attribute__((target("avx2,fma")))
#define LANES 8
#define ROWS 6
#include "_native_tile.h"
#undef SUFFIX
#undef TARGET
#undef LANES
#undef ROWS
#endif
#define SUFFIX _base
#define TARGET
#define LANES 4
#define ROWS 6
#include "_native_tile.h"

#define MAX_LANES 16
#define MAX_ROWS 12

static int level(void) {
#if defined(__x86_64__) && defined(__GNUC__)
  if (__builtin_cpu_supports("avx512f")) return 2;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 1;
#endif
  return 0;
}

#if defined(__x86_64__) && defined(__GNUC__)
#define DISPATCH(f, ...)                                                                                            \
  do {                                                                                                              \
    if (isa == 2) f##_avx512(__VA_ARGS__);                                                                          \
    else if (isa == 1) f##_avx2(__VA_ARGS__);                                                                       \
    else f##_base(__VA_ARGS__);                                                                                     \
  } while (0)
#else
#define DISPATCH(f, ...) f##_base(__VA_ARGS__)
#endif

/* sums[b,h,j] = sum_i A_ij and entropy[b,h,i] = -sum_j A_ij log A_ij with A_ij = exp(scale q_i.k_j + bias_ij - lse_i).
 * q (B,H,N,d) and k (B,Hk,Nk,d) have strides sq[3], sk[3] over their first three axes and a dense last axis; bias has
 * strides sb[3] (0 where broadcast) and a dense last axis, or is NULL. lse, sums, entropy are dense. A row whose lse
 * is +inf counts for nothing. With `causal`, query i sees keys j <= i + offset. Returns 0, or 1 when out of memory. */
int sinkscope_columns(const float *q, const float *k, const float *lse, const float *bias, float *sums, float *entropy,
                      const int64_t *dims, const int64_t *sq, const int64_t *sk, const int64_t *sb, float scale,
                      int causal, int64_t offset, int chunks) {
  const int64_t B = dims[0], H = dims[1], Hk = dims[2], n = dims[3], nk = dims[4], d = dims[5];
  const int64_t tasks = B * H * chunks, step = (n + chunks - 1) / chunks;
  const size_t need = (size_t)d * 2 * MAX_LANES + (size_t)nk * MAX_LANES + (size_t)MAX_ROWS * 2 * MAX_LANES;
  float *parts = chunks > 1 ? malloc(sizeof(float) * (size_t)(tasks * nk)) : sums;
  int failed = parts == NULL, isa = level();
  (void)isa;
  if (failed) return 1;
#pragma omp parallel
  {
    float *scratch = malloc(sizeof(float) * need);
    if (scratch == NULL) {
#pragma omp atomic write
      failed = 1;
    }
#pragma omp for schedule(dynamic, 1)
    for (int64_t t = 0; t < tasks; t++) {
      if (scratch == NULL) continue;
      const int64_t c = t % chunks, bh = t / chunks, b = bh / H, x = bh % H, y = x / (H / Hk);
      const struct head h = {
          .q = q + b * sq[0] + x * sq[1], .k = k + b * sk[0] + y * sk[1], .lse = lse + bh * n,
          .bias = bias ? bias + b * sb[0] + x * sb[1] : NULL, .entropy = entropy + bh * n, .sq = sq[2], .sk = sk[2],
          .sb = sb[2], .d = (int)d, .nk = (int)nk, .causal = causal, .offset = (int)offset, .scale = scale};
      const int64_t i0 = c * step, i1 = i0 + step < n ? i0 + step : n;
      DISPATCH(columns_chunk, &h, (int)i0, (int)i1, parts + t * nk, scratch);
    }
    free(scratch);
  }
  if (chunks > 1) {
    for (int64_t bh = 0; bh < B * H && !failed; bh++)
      for (int64_t j = 0; j < nk; j++) {
        double s = 0;
        for (int64_t c = 0; c < chunks; c++) s += parts[(bh * chunks + c) * nk + j];
        sums[bh * nk + j] = (float)s;
      }
    free(parts);
  }
  return failed;
}

/* out[b,h,j] = |R_h x_bhj|; x (B,Hk,N,d) strided as above, R (H,d,d) dense and upper triangular, H a multiple of Hk. */
int sinkscope_norms(const float *x, const float *R, float *out, const int64_t *dims, const int64_t *sx) {
  const int64_t B = dims[0], H = dims[1], Hk = dims[2], n = dims[3], d = dims[4];
  int failed = 0, isa = level();
  (void)isa;
#pragma omp parallel
  {
    float *panel = malloc(sizeof(float) * (size_t)d * 2 * MAX_LANES);
    if (panel == NULL) {
#pragma omp atomic write
      failed = 1;
    }
#pragma omp for schedule(dynamic, 1)
    for (int64_t bh = 0; bh < B * H; bh++) {
      if (panel == NULL) continue;
      const int64_t b = bh / H, h = bh % H, y = h / (H / Hk);
      DISPATCH(norms_rows, x + b * sx[0] + y * sx[1], sx[2], (int)n, (int)d, R + h * d * d, out + bh * n, panel);
    }
    free(panel);
  }
  return failed;
}

/* out[b,h] = sum_i keep_bi x_bhi x_bhi^T; x (B,H,N,d) strided as above, keep (B,N) dense, out (B,H,d,d) dense. */
int sinkscope_gram(const float *x, const uint8_t *keep, float *out, const int64_t *dims, const int64_t *sx) {
  const int64_t B = dims[0], H = dims[1], n = dims[2], d = dims[3], padded = d + 2 * MAX_LANES + MAX_ROWS;
  int failed = 0, isa = level();
  (void)isa;
#pragma omp parallel
  {
    float *scratch = malloc(sizeof(float) * (size_t)((GRAM_BLOCK + padded) * padded));
    if (scratch == NULL) {
#pragma omp atomic write
      failed = 1;
    }
#pragma omp for schedule(dynamic, 1)
    for (int64_t bh = 0; bh < B * H; bh++) {
      if (scratch == NULL) continue;
      const int64_t b = bh / H, h = bh % H;
      DISPATCH(gram_rows, x + b * sx[0] + h * sx[1], sx[2], (int)n, (int)d, keep + b * n, out + bh * d * d, scratch);
    }
    free(scratch);
  }
  return failed;
}

/* sink[b,h,i] = q_bhi . k_bhs with s = at[b,h], and own[b,h,i] = q_bhi . k_bhi, in one pass over q and k. */
void sinkscope_dots(const float *q, const float *k, const int64_t *at, float *sink, float *own, const int64_t *dims,
                    const int64_t *sq, const int64_t *sk) {
  const int64_t B = dims[0], H = dims[1], Hk = dims[2], n = dims[3], d = dims[4];
#pragma omp parallel for schedule(static)
  for (int64_t bh = 0; bh < B * H; bh++) {
    const int64_t b = bh / H, h = bh % H;
    const float *qs = q + b * sq[0] + h * sq[1], *ks = k + b * sk[0] + h / (H / Hk) * sk[1];
    const float *chosen = ks + at[bh] * sk[2];
    for (int64_t i = 0; i < n; i++) {
      const float *x = qs + i * sq[2], *y = ks + i * sk[2];
      float s[8] = {0}, o[8] = {0};
      int64_t p = 0;
      for (; p + 8 <= d; p += 8)
        for (int l = 0; l < 8; l++) {
          s[l] += x[p + l] * chosen[p + l];
          o[l] += x[p + l] * y[p + l];
        }
      for (; p < d; p++) {
        s[0] += x[p] * chosen[p];
        o[0] += x[p] * y[p];
      }
      sink[bh * n + i] = ((s[0] + s[1]) + (s[2] + s[3])) + ((s[4] + s[5]) + (s[6] + s[7]));
      own[bh * n + i] = ((o[0] + o[1]) + (o[2] + o[3])) + ((o[4] + o[5]) + (o[6] + o[7]));
    }
  }
}

/* Largest eigenvalue of a symmetric tridiagonal matrix by bisection with Sturm counts. */
static double top_ritz(const double *a, const double *b, int m) {
  double hi = 0;
  for (int i = 0; i < m; i++) {
    double r = a[i] + (i ? fabs(b[i - 1]) : 0) + (i + 1 < m ? fabs(b[i]) : 0);
    hi = r > hi ? r : hi;
  }
  double lo = 0;
  for (int it = 0; it < 60 && hi - lo > 1e-9 * hi; it++) {
    double x = 0.5 * (lo + hi), p = 1;
    int above = 0;
    for (int i = 0; i < m; i++) {
      p = a[i] - x - (i ? b[i - 1] * b[i - 1] / p : 0);
      if (p == 0) p = -1e-300;
      above += p > 0;
    }
    if (above) lo = x;
    else hi = x;
  }
  return 0.5 * (lo + hi);
}

/* Largest eigenvalue of each of n positive semidefinite d x d matrices: Lanczos with full reorthogonalisation, stopped
 * when the Ritz value moves by less than 1e-7. */
int sinkscope_top_eigenvalue(const float *G, float *out, int64_t n, int64_t d) {
  int failed = 0;
#pragma omp parallel
  {
    float *Q = malloc(sizeof(float) * (size_t)(d * (d + 1)));
    double *ab = malloc(sizeof(double) * (size_t)(2 * d + 2));
    if (Q == NULL || ab == NULL) {
#pragma omp atomic write
      failed = 1;
    }
#pragma omp for schedule(dynamic, 4)
    for (int64_t t = 0; t < n; t++) {
      if (Q == NULL || ab == NULL) continue;
      const float *g = G + t * d * d;
      /* G times a vector of pseudo-random numbers: no eigenvector can be missing from it by structure, as it can be
       * from a column of a block diagonal G */
      uint32_t random = 1;
      memset(Q, 0, sizeof(float) * (size_t)d);
      for (int64_t i = 0; i < d; i++) {
        random = random * 1664525u + 1013904223u;
        const float r = (float)(random >> 8) / 8388608.0f - 1.0f;
        for (int64_t j = 0; j < d; j++) Q[j] += r * g[i * d + j];
      }
      double norm = 0;
      for (int64_t i = 0; i < d; i++) norm += (double)Q[i] * Q[i];
      if (!(norm > 0)) {
        out[t] = norm == 0 ? 0 : NAN;
        continue;
      }
      for (int64_t i = 0; i < d; i++) Q[i] = (float)(Q[i] / sqrt(norm));
      double *a = ab, *b = ab + d, ritz = 0;
      for (int64_t m = 0; m < d; m++) {
        float *w = Q + (m + 1) * d;
        const float *v = Q + m * d;
        memset(w, 0, sizeof(float) * (size_t)d);
        for (int64_t i = 0; i < d; i++)
          for (int64_t j = 0; j < d; j++) w[j] += v[i] * g[i * d + j];
        double alpha = 0;
        for (int64_t i = 0; i < d; i++) alpha += (double)v[i] * w[i];
        a[m] = alpha;
        for (int pass = 0; pass < 2; pass++)
          for (int64_t r = 0; r <= m; r++) {
            float c = 0;
            for (int64_t i = 0; i < d; i++) c += Q[r * d + i] * w[i];
            for (int64_t i = 0; i < d; i++) w[i] -= c * Q[r * d + i];
          }
        double beta = 0;
        for (int64_t i = 0; i < d; i++) beta += (double)w[i] * w[i];
        beta = sqrt(beta);
        b[m] = beta;
        if (m % 4 == 3 || m == d - 1 || beta <= 1e-6 * fabs(alpha)) {
          const double now = top_ritz(a, b, (int)m + 1);
          const int done = fabs(now - ritz) <= 1e-7 * now || beta <= 1e-6 * now;
          ritz = now;
          if (done) break;
        }
        for (int64_t i = 0; i < d; i++) w[i] = (float)(w[i] / beta);
      }
      out[t] = (float)ritz;
    }
    free(Q);
    free(ab);
  }
  return failed;
}
