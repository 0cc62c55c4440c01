"""From logits, or from hidden states and the weight of the head, to log-probability, entropy and the policy loss.

:mod:`.logprob`          ``torch.ops.maspo.logprob``: rows of logits that exist
:mod:`.head`             the head's matrix products, cut so that they stay within a memory budget
:mod:`.groups`           the way of a CPU: groups of tokens, and where their logits lie
:mod:`.whole_rows`       the way of a GPU: tiles of tokens, whose logits' gradients are kept for large products
:mod:`.kept_words`       the same with little memory: some words' gradients are kept, the logits of the others made again
:mod:`.parts`            rows whose words come in parts
:mod:`.linear_logprob`   ``torch.ops.maspo.linear_logprob``: from hidden states
:mod:`.linear_loss`      ``torch.ops.maspo.linear_loss``: from hidden states to the loss, gradients made on the way
:mod:`.loss_of_tokens`   the policy loss between the products: of some tokens at a time
:mod:`.vocab_parallel`   the first two where each rank of a group has a shard of the vocabulary
:mod:`.reference`        the same in plain torch
:mod:`.checks`           what users pass
"""
