"""The names of SAELens 6's configuration keys, so that a misspelt one is told before SAELens is imported (10 to 20 s).

`build_config` checks the config against SAELens' own classes; a test compares these names with them.
"""

TOP = """
    model_name model_class_name hook_name hook_head_index dataset_path dataset_trust_remote_code streaming
    is_dataset_tokenized use_chat_formatting context_size use_cached_activations cached_activations_path
    from_pretrained_path n_batches_in_buffer training_tokens store_batch_size_prompts seqpos_slice
    disable_concat_sequences sequence_separator_token activations_mixing_fraction device llm_device act_store_device
    prefetch_llm_batches seed dtype prepend_bos autocast autocast_lm compile_llm llm_compilation_mode compile_sae
    sae_compilation_mode train_batch_size_tokens adam_beta1 adam_beta2 lr lr_scheduler_name lr_warm_up_steps lr_end
    lr_decay_steps n_restart_cycles dead_feature_window feature_sampling_window dead_feature_threshold n_eval_batches
    eval_batch_size_prompts n_checkpoints checkpoint_path save_final_checkpoint output_path resume_from_checkpoint
    verbose model_kwargs model_from_pretrained_kwargs exclude_special_tokens n_batches_for_norm_estimate
""".split()  # noqa: SIM905

LOGGER = """
    log_to_wandb log_activations_store_to_wandb log_optimizer_state_to_wandb log_weights_to_wandb wandb_project wandb_id
    run_name wandb_entity wandb_log_frequency eval_every_n_wandb_logs
""".split()  # noqa: SIM905

# Of all architectures.
SAE = """
    architecture d_in d_sae dtype device apply_b_dec_to_input normalize_activations reshape_activations
    decoder_init_norm l1_coefficient lp_norm l1_warm_up_steps k use_sparse_activations aux_loss_coefficient
    rescale_acts_by_decoder_norm jumprelu_init_threshold jumprelu_bandwidth jumprelu_sparsity_loss_mode l0_coefficient
    l0_warm_up_steps pre_act_loss_coefficient jumprelu_tanh_scale jumprelu_ste_to_input target_l0 topk_threshold_lr
    matryoshka_widths use_matryoshka_aux_loss residual_threshold max_iterations stop_on_duplicate_support
""".split()  # noqa: SIM905
