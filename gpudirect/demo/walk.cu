// Walk a linked list that the CPU built: its pointers are valid here as they stand.
struct Node {
    Node *next;
    long long value;
};

__global__ void walk(const Node *node, long long *result)
{
    long long length = 0, sum = 0;
    for (; node; node = node->next) {
        length++;
        sum += node->value;
    }
    result[0] = length;
    result[1] = sum;
}
