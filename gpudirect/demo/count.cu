// Count the words and the letters of a text: one thread a character.
__global__ void count(const unsigned char *text, int length, unsigned *counts)
{
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= length)
        return;
    unsigned char c = text[i];
    if (c > ' ' && (i == 0 || text[i - 1] <= ' '))
        atomicAdd(&counts[0], 1u);
    if ((c | 32) >= 'a' && (c | 32) <= 'z')
        atomicAdd(&counts[1], 1u);
}
