"""Every setting there is, with its default. Other configs start from here and change what they mean to change."""

from ml_collections import ConfigDict

from jaxprefit.encoder.transformer import LINEAR_MAPS


def get_config() -> ConfigDict:
    c = ConfigDict()
    c.seed = 0  # of initialisation, data order and dropout
    c.strategy = "task_primary"  # none, individual_ner, _tc or _mlm, naive, task_primary, shared_lora, frozen_lora
    c.aggregator = "sum"  # of the families' gradients on shared parameters: see jaxprefit/surgery
    c.aggregator_scope = "whole"  # weights for all shared parameters together, or for each 'block': layer, embeddings
    c.aggregator_decay = 0.0  # of the moving average of Gram matrices that weights come from; 0: each step's own
    c.devices = 0  # of the mesh; 0: all
    c.mesh = ConfigDict()  # how they are laid out, see jaxprefit/runtime/sharding.py; -1: what the other axes leave
    c.mesh.data = -1  # every device has all parameters
    c.mesh.fsdp = 1  # a parameter is divided; rows of batches are, over both of these
    c.mesh.tensor = 1  # the arithmetic of a layer is divided

    c.model = ConfigDict()
    c.model.path = ""  # a Hugging Face directory or hub name; empty: a random encoder of the sizes below
    c.model.layers = 4  # these seven only without a path
    c.model.hidden = 128
    c.model.heads = 4
    c.model.intermediate = 512
    c.model.max_positions = 128
    c.model.vocab = 4000  # WordPiece entries, trained on generated text
    c.model.vocab_path = ""  # instead, a directory with tokenizer.json or vocab.txt
    c.model.dtype = "float32"  # of the computation: float32 or bfloat16
    c.model.hidden_dropout = 0.0

    c.lora = ConfigDict()
    c.lora.last_layers = 3  # on the last k layers
    c.lora.layers = ()  # instead, on these layers, from 0 at the input, as experiments.conflict may advise
    c.lora.targets = LINEAR_MAPS
    c.lora.rank = 16
    c.lora.alpha = 32.0  # the low-rank path is scaled by alpha / rank
    c.lora.dropout = 0.0

    c.optimizer = ConfigDict()
    c.optimizer.steps = 300  # equal for every strategy
    c.optimizer.warmup_steps = 30
    c.optimizer.backbone_lr = 5e-5  # peaks; linear warm-up and linear decay to zero
    c.optimizer.lora_lr = 5e-4
    c.optimizer.head_lr = 1e-3
    c.optimizer.weight_decay = 0.01
    c.optimizer.b1 = 0.9  # AdamW's decay of its means of the gradient and its square
    c.optimizer.b2 = 0.999
    c.optimizer.clip = "auto"  # 'families', each before they are combined; with surgery 'combined', the update instead
    c.optimizer.clip_norm = 1.0

    c.data = ConfigDict()
    c.data.root = ""  # folder that source names are looked up in
    c.data.cache = ""  # where ArrayRecord caches are built; empty: 'cache' beside the workdir
    c.data.held_out = 128  # rows of each source (at most a tenth, spread over it) kept for held-out losses
    c.data.limit = 0  # first rows of each source only; 0: all
    # Rows whose text stands in a test of downstream.ner or downstream.tc are left out: '', 'exact' or 'near'.
    c.data.drop_overlap = ""
    for family in ("ner", "tc", "mlm"):
        c.data[family] = ConfigDict()
        c.data[family].sources = ()  # see jaxprefit/data/sources.py; @NAME of configs/datasets.py
        c.data[family].weights = ""  # shares by source name, as 'name=2,other=1'; empty: by size ** alpha
        c.data[family].alpha = 1.0
        c.data[family].exhaustion = "repeat"  # of a source that is used up; or 'stop': no row is seen twice
        c.data[family].rows = 16  # of a batch, over all devices; each holds several texts
        c.data[family].row_length = 64  # tokens
        c.data[family].max_length = 32  # tokens of a text; longer ones are cut (mlm: windowed)
        c.data[family].loss_weight = 1.0  # on the family's gradient, before surgery
    c.data.ner.loss = "sigmoid"  # sigmoid, softmax (with a learned "no entity"), distill (no labels, a teacher)
    c.data.ner.concept_encoder = "frozen"  # vectors of entity types: frozen or trained start encoder, learned table
    c.data.ner.max_concepts = 512  # in a batch; a type that finds no place is left out there
    c.data.ner.teacher = ""  # of distill: a Hugging Face directory with the start encoder's tokenizer
    c.data.ner.teacher_cache = ""  # folder to keep its vectors in; empty: computed at each batch
    c.data.tc.rows = 32
    c.data.tc.objective = "contrastive"  # of pairs; or 'supervised': of labelled sets with a head each
    c.data.tc.chunk_rows = 0  # rows encoded at a time (gradient caching: less memory, more time); 0: all
    c.data.tc.temperature = 0.05  # contrastive, as all below
    c.data.tc.learn_temperature = False  # from the value above, at learning rate head_lr, to 0.01 at least
    c.data.tc.prefix_a = ""  # text put before each a, such as 'query: '
    c.data.tc.prefix_b = ""  # before each b and each hard negative
    c.data.tc.dims = ()  # leading dimensions that are trained to do alone, such as (64, 128)
    c.data.mlm.mask_share = 0.15  # of the tokens
    c.data.mlm.masking = "uniform"  # the choice of words; or 'tfidf', those that tell what the text is about

    c.filter = ConfigDict()  # of pairs, before training: experiments/filter_pairs.py
    c.filter.top_k = 2  # a pair is kept if its b ranks so high
    c.filter.sample = 1000  # among so many b of its source
    c.filter.seed = 0  # of the sample

    c.run = ConfigDict()  # may differ between a run and its continuation
    c.run.checkpoint_every = 100  # steps
    c.run.keep = 2  # newest checkpoints kept
    c.run.log_every = 1  # steps between lines of metrics.jsonl
    c.run.log_gram = True  # the families' Gram matrices among them, which mode online of experiments.conflict reads
    c.run.nonfinite = "stop"  # the run at a loss or gradient that is not finite; or 'skip': the step, as if not there
    c.run.nonfinite_limit = 10  # skipped steps in a row that stop it all the same
    c.run.join_within = 300  # seconds that the processes of --distributed wait for one another at the start
    c.run.lost_after = 60  # seconds without a sign from one of them, after which the others end
    c.run.profile = 0  # steps, after a few, whose time is looked into: WORKDIR/profile.txt and profile, a trace
    c.run.compilation_cache = True  # what was compiled is kept, in CACHE/compiled, and the next start is faster
    c.run.remat = "none"  # or, with less memory and more time, 'dots' or 'full': see jaxprefit/encoder/transformer.py
    c.run.accumulate = 1  # micro-batches that a family's rows are cut into, one in memory at a time; tc: chunk_rows
    c.run.eval_every = 0  # steps between lines of held_out.jsonl; 0: held-out losses at the start and the end only

    c.conflict = ConfigDict()
    c.conflict.mode = "probe"  # or online, ablate, represent, advise, compare: see experiments/conflict/__init__.py
    c.conflict.rounds = 24  # of a probe, each with two fresh batches per family
    c.conflict.seed = 1  # of the fresh batches
    c.conflict.lookahead = 4  # steps a family tried on held-out batches, for affinity and curvature; 0: none
    c.conflict.windows = 10  # of training steps, in mode online
    c.conflict.ablation = ConfigDict()
    c.conflict.ablation.steps = 100  # of each short training; the run's learning rates, its warm-up in proportion
    c.conflict.ablation.seeds = (0, 1, 2)  # of the start's random parts, data order and dropout
    c.conflict.ablation.blocks = ()  # stopped, such as ("embeddings", "layer_0"); empty: all shared ones
    c.conflict.ablation.layers = 1  # neighbouring layers stopped together
    c.conflict.ablation.controls = True  # also loss weights, temperatures, steps, families alone
    c.conflict.representations = ConfigDict()  # hidden states on held-out and downstream texts
    c.conflict.representations.texts = 256  # of each family
    c.conflict.representations.tokens = 2000  # of those, compared between encoders (CKA, effective rank)
    c.conflict.representations.folds = 5  # of a linear probe, each with training and test rows of its own
    c.conflict.representations.fold_rows = 128  # of training, and of test
    c.conflict.representations.seed = 0  # of what is drawn

    c.downstream = ConfigDict()
    c.downstream.mode = "adapter"  # adapter, stacked, probe, full, mteb: see experiments/downstream.py
    c.downstream.ner = ()  # tasks: folders with train, test and perhaps dev
    c.downstream.tc = ()
    c.downstream.fraction = 1.0  # of the training labels
    c.downstream.shots = 0  # instead, so many of each label, and of entities of each type; 0: as the fraction says
    c.downstream.split = "test"  # scored; or 'dev', to choose settings: the set's dev file, else a tenth of train
    c.downstream.limit = 0  # training rows at most, after the fraction; 0: all
    c.downstream.cache_mb = 1024  # of a frozen backbone's activations kept; a larger task computes them anew
    c.downstream.steps = 300
    c.downstream.batch_size = 32
    c.downstream.max_length = 64
    c.downstream.lora_lr = 1e-3
    c.downstream.head_lr = 5e-3
    c.downstream.backbone_lr = 5e-5  # mode full
    c.downstream.seeds = (0,)  # mode mteb: numbers of the draws
    return c
