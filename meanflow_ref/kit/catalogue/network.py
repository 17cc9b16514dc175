"""Networks: found by ``check_network`` and ``meanflow-ref preflight``, before any training."""

from __future__ import annotations

from meanflow_ref.kit.catalogue.page import Page
from meanflow_ref.kit.catalogue.sister_effects import effect

PAGES = (
    Page(
        name="ATTENTION_NO_FORWARD_AD",
        part="network",
        title="An attention kernel has no forward-mode derivative",
        symptom="NotImplementedError: Trying to use forward AD with _scaled_dot_product_... that does not support it.",
        wrong="F.scaled_dot_product_attention(q, k, v)   # inside torch.func.jvp",
        right="with sdpa_kernel(SDPBackend.MATH): ...",
        cause="Fused attention kernels come without a jvp (pytorch issues 98164, 146901, 165517); most have no second "
        "backward pass either. The commonest obstacle of all.",
        remedy="from torch.nn.attention import SDPBackend, sdpa_kernel\n"
        "with sdpa_kernel(SDPBackend.MATH):          # around the loss; memory of N^2\n    loss = ...\n"
        "# or meanflow_ref.jvp.stopgrad, whose attention has a derivative; or a JVP kernel for your device",
        effect=effect("ATTENTION_NO_FORWARD_AD"),
    ),
    Page(
        name="CUSTOM_FUNCTION_NO_JVP",
        part="network",
        title="An operation without a forward-mode derivative",
        symptom="You must implement the jvp function for custom autograd.Function to use it with forward mode AD.",
        wrong="class Rotary(torch.autograd.Function): forward, backward",
        right="forward, setup_context, backward, jvp",
        cause="Custom kernels (rotary embeddings, fused norms, Apex, Liger) define a backward pass alone.",
        remedy="@staticmethod\ndef jvp(ctx, *tangents): ...             # beside setup_context\n"
        "# or two backward passes: jvp='double_backward'; or the module written in plain torch",
        effect=effect("CUSTOM_FUNCTION_NO_JVP"),
    ),
    Page(
        name="TIME_DERIVATIVE_DEAD",
        part="network",
        title="u changes with time, its derivative does not know",
        symptom="No error. du/dt lacks its time part, or r never reaches the network.",
        wrong="emb = table[(t * 999).long()]             # also t.detach(), t.data, torch.tensor(t.tolist())",
        right="emb = mlp(time_features(t))",
        cause="Time embeddings from diffusion code count steps: an integer table has the derivative 0. So has anything "
        "that leaves the graph.",
        remedy="from meanflow_ref.models.embedding import time_features\nemb = mlp(torch.cat([time_features(t, 64), "
        "time_features(t - r, 64)], 1))",
        effect=effect("TIME_DERIVATIVE_DEAD"),
    ),
    Page(
        name="TIME_STIFFNESS",
        part="network",
        title="u moves too fast in time for its derivative to be computed in this precision",
        symptom="Very large du/dt, loss spikes, NaN after many steps; worse in bfloat16 or with finite differences.",
        wrong="emb = sinusoids(1000 * t)",
        right="emb = sinusoids(t) with angular frequencies of a few, in float32 or better",
        cause="The embedding of diffusion transformers multiplies times by 1000. A derivative then multiplies by 1000, "
        "and rounding of t is multiplied with it. A note where the network's own precision still carries it.",
        remedy="emb = time_features(t.float(), 64)         # meanflow_ref.models.embedding: highest frequency 4\n"
        "# keep times in float32 under autocast; take the JVP outside autocast",
        effect=effect("TIME_STIFFNESS"),
    ),
    Page(
        name="NO_GRAD_IN_FORWARD",
        part="network",
        title="A part of the network is cut out of one derivative or of both",
        symptom="No error. Forward mode and reverse mode disagree, or both disagree with what the network does.",
        wrong="with torch.no_grad(): features = encoder(z)   # inside forward; or h.detach()",
        right="features = encoder(z); freeze parameters by requires_grad_(False)",
        cause="no_grad does not stop forward-mode tangents but stops the backward pass; detach stops both. Written to "
        "save memory or to freeze a part.",
        remedy="for p in encoder.parameters():\n    p.requires_grad_(False)      # in place of no_grad inside forward",
        effect=effect("NO_GRAD_IN_FORWARD"),
    ),
    Page(
        name="BATCH_COUPLING",
        part="network",
        title="A row of u depends on other rows of the batch",
        symptom="BatchNorm in training raises under torch.func.jvp, or (other statistics over the batch) nothing does.",
        wrong="nn.BatchNorm2d(c); h - h.mean(0)",
        right="nn.GroupNorm(8, c)",
        cause="u is a function of one state. With statistics over the batch, du/dt contains the movement of all rows.",
        remedy="nn.GroupNorm(8, c)        # or LayerNorm, RMSNorm; or net.eval() for frozen statistics",
        effect=effect("BATCH_COUPLING"),
    ),
    Page(
        name="CHECKPOINT_REENTRANT",
        part="network",
        title="Gradient checkpointing meets a JVP",
        symptom="setup_context error under torch.func.jvp, or CheckpointError in the backward pass after it.",
        wrong="checkpoint(block, h, use_reentrant=True); loss with the JVP and the gradient in one pass",
        right="two passes: the JVP without a graph, u with one",
        cause="Reentrant checkpoints are an autograd.Function without jvp. The other kind records other tensors in the "
        "backward pass than under the JVP.",
        remedy="checkpoint(block, h, use_reentrant=False)\nwith torch.no_grad():\n"
        "    _, du_dt = torch.func.jvp(net_without_checkpoints, (z, r, t), (v, zeros, ones))\n"
        "u = net(z, r, t)                             # meanflow_loss(..., two_pass=True)",
        effect=effect("CHECKPOINT_REENTRANT"),
    ),
    Page(
        name="COMPILED_NEQ_EAGER",
        part="network",
        title="The compiled network has another derivative",
        symptom="No error. Training with torch.compile goes worse than without.",
        wrong="net = torch.compile(net); forward_ad or a custom jvp inside",
        right="loss = torch.compile(loss): compile the whole step",
        cause="Dynamo drops the jvp of a custom autograd.Function (pytorch issue 192985), and dual numbers lose their "
        "tangents in a compiled function (187284).",
        remedy="step = torch.compile(loss_function)          # torch.func.jvp inside what is compiled",
        effect=effect("COMPILED_NEQ_EAGER"),
    ),
)
