(** * The analysis behind MeanFlow, checked by the kernel of Coq

    Four steps of the MeanFlow derivation are analysis and not algebra: the fundamental theorem of calculus, the chain
    rule, the limit r -> t, and "a bounded solution of the identity is the average velocity". A computer-algebra system
    can only restate them. Here they are theorems.

    HOW TO READ THIS FILE WITHOUT KNOWING COQ.  Read the comments and what stands between [Theorem] and [Proof]; skip
    what stands between [Proof] and [Qed], which is for the machine. [forall], [exists], [/\ ] (and), [->] (implies) and
    [~] (not) mean what they say; [A -> B -> C] reads "if A and B, then C"; [f x y] is f(x, y); [fun s => e] is the
    function s |-> e.

    LETTERS.
      V              the space of states: any complete normed real vector space (R, R^n, a Banach space). No dimension
                     appears anywhere.
      [+], [-], [*]  sum and difference of vectors; number times vector. Plain + - * / are those of real numbers.
      a, b           the lifetime of the flow is the closed segment [a, b] with a < b. The paper has a = 0 (data), b = 1
                     (noise). Nothing is assumed about times outside: at a and at b, continuity and derivatives are
                     one-sided.
      w              the velocity that a particle meets: w(tau) = v(z_tau, tau).
      r, t, s        times. Unless a hypothesis orders them they may come in any order, r > t included.
      RInt w r t     the Riemann integral of w from r to t (minus the integral from t to r when t < r).
      locally t      "for all times near t"; [at_right t], [at_left t]: near t, and after or before it.

    Ids such as mf:6 are those of meanflow_ref/sources.py.

    NOT SAID ANYWHERE BELOW.  That trajectories exist; anything about floating point, about a loss being minimised,
    or about code. Random variables do not appear: v is a given field, as in mf:2. *)

Set Warnings "-ambiguous-paths".
From Coq Require Import Reals Psatz.
From Coquelicot Require Import Coquelicot.
Open Scope R_scope.

Notation "x [+] y" := (plus x y) (at level 50, left associativity).
Notation "x [-] y" := (minus x y) (at level 50, left associativity).
Notation "k [*] x" := (scal k x) (at level 40, left associativity).

(** ** 1. Vectors: small algebra *)

Section Groups.
Context {G : AbelianGroup}.
Implicit Types x y p q : G.

Lemma move_right p q y : p [+] q = y -> p = y [-] q.
Proof. intros <-. unfold minus. rewrite <- plus_assoc, plus_opp_r, plus_zero_r. reflexivity. Qed.

Lemma move_left p q y : p = y [-] q -> p [+] q = y.
Proof. intros ->. unfold minus. rewrite <- plus_assoc, plus_opp_l, plus_zero_r. reflexivity. Qed.

Lemma equal_if_difference_is_zero x y : x [-] y = zero -> x = y.
Proof.
  intro E. rewrite <- (plus_zero_l y), <- E. unfold minus.
  rewrite <- plus_assoc, plus_opp_l, plus_zero_r. reflexivity.
Qed.

Lemma back_and_forth x y : y = x [-] (x [-] y).
Proof. apply move_right. unfold minus. rewrite plus_comm, <- plus_assoc, plus_opp_l, plus_zero_r. reflexivity. Qed.
End Groups.

Section Scalars.
Context {V : ModuleSpace R_AbsRing}.
Implicit Types (k : R) (x : V).

Lemma scal_R_assoc (k l : R) x : k [*] (l [*] x) = (k * l) [*] x.
Proof. exact (scal_assoc k l x). Qed.

Lemma scal_R_one x : 1 [*] x = x.
Proof. exact (scal_one x). Qed.

Lemma scal_R_zero x : 0 [*] x = zero.
Proof. exact (scal_zero_l x). Qed.

Lemma scal_R_opp k x : (- k) [*] x = opp (k [*] x).
Proof. exact (scal_opp_l k x). Qed.

Lemma scal_inverse_l k x : k <> 0 -> / k [*] (k [*] x) = x.
Proof. intro H. rewrite scal_R_assoc, Rinv_l by exact H. apply scal_R_one. Qed.

Lemma scal_inverse_r k x : k <> 0 -> k [*] (/ k [*] x) = x.
Proof. intro H. rewrite scal_R_assoc, Rinv_r by exact H. apply scal_R_one. Qed.

Lemma scal_product (h dk k : R) x y : (h * dk) [*] x [+] k [*] (h [*] y) = h [*] (dk [*] x [+] k [*] y).
Proof.
  etransitivity; [| symmetry; exact (scal_distr_l h (dk [*] x) (k [*] y))].
  rewrite !scal_R_assoc, (Rmult_comm k h). reflexivity.
Qed.
End Scalars.

(** [clamp a b s] is the time of [a, b] nearest to s. It extends a function on [a, b] to all times. *)
Definition clamp (a b s : R) : R := Rmax a (Rmin b s).

Lemma clamp_in a b s : a <= b -> a <= clamp a b s <= b.
Proof. intro H. unfold clamp. split; [apply Rmax_l |]. apply Rmax_lub; [exact H | apply Rmin_l]. Qed.

Lemma clamp_id a b s : a <= s <= b -> clamp a b s = s.
Proof. intros [H1 H2]. unfold clamp. rewrite Rmin_right, Rmax_right; lra. Qed.

Lemma clamp_shrinks a b s t : Rabs (clamp a b s - clamp a b t) <= Rabs (s - t).
Proof.
  unfold clamp, Rmax, Rmin.
  repeat destruct (Rle_dec _ _); unfold Rabs; repeat destruct (Rcase_abs _); lra.
Qed.

Lemma ball_R (x y e : R) : Rabs (y - x) < e -> ball x e y.
Proof. intro H. exact H. Qed.

Lemma limit_at_unique (F : (R -> Prop) -> Prop) (x y : R) : ProperFilter F ->
  is_filter_lim F x -> is_filter_lim F y -> x = y.
Proof. intros HF. apply (is_filter_lim_unique (V := R_NormedModule)). Qed.

(** ** 2. Continuity and derivatives on the segment [a, b] *)

Section Segment.
Context {V : NormedModule R_AbsRing}.
Variables a b : R.

(** Near t, within the lifetime; and the same without t itself. *)
Definition near (t : R) : (R -> Prop) -> Prop := within (fun s => a <= s <= b) (locally t).
Definition around (t : R) : (R -> Prop) -> Prop := within (fun s => a <= s <= b /\ s <> t) (locally t).

(** [continuous_in a b f t]: f(s) -> f(t) as s -> t within [a, b]. *)
Definition continuous_in (f : R -> V) (t : R) : Prop := filterlim f (near t) (locally (f t)).

(** [is_derive_in a b f t l]: l is the derivative of f at t, relative to [a, b]. By [derivative_textbook] below this is
    the usual definition: for every e > 0, |f(s) - f(t) - (s - t) l| <= e |s - t| for all s of [a, b] near t. It is the
    ordinary derivative inside and the one-sided derivative at a and at b. *)
Definition is_derive_in (f : R -> V) (t : R) (l : V) : Prop := filterdiff f (near t) (fun h => h [*] l).

Lemma near_proper t : a <= t <= b -> ProperFilter (near t).
Proof.
  intro Ht. constructor; [| apply within_filter, locally_filter].
  intros P [d Hd]. exists t. apply Hd; [apply ball_center | exact Ht].
Qed.

Lemma near_tends t : is_filter_lim (near t) t.
Proof. intros P [d Hd]. exists d. intros s Hs _. exact (Hd s Hs). Qed.

Lemma near_all (P : R -> Prop) t : (forall s, a <= s <= b -> P s) -> near t P.
Proof. intro H. exists (mkposreal 1 Rlt_0_1). intros s _ Hs. exact (H s Hs). Qed.

Lemma around_proper t : a < b -> a <= t <= b -> ProperFilter (around t).
Proof.
  intros lifetime Ht. constructor; [| apply within_filter, locally_filter].
  intros P [d Hd]. generalize (cond_pos d); intro Dp.
  destruct (Rlt_or_le t b) as [L | L].
  - exists (t + Rmin (d / 2) (b - t)).
    assert (0 < Rmin (d / 2) (b - t)) by (apply Rmin_pos; lra).
    generalize (Rmin_l (d / 2) (b - t)) (Rmin_r (d / 2) (b - t)); intros.
    apply Hd; [| lra]. apply ball_R. rewrite Rabs_pos_eq; lra.
  - exists (t - Rmin (d / 2) (t - a)).
    assert (0 < Rmin (d / 2) (t - a)) by (apply Rmin_pos; lra).
    generalize (Rmin_l (d / 2) (t - a)) (Rmin_r (d / 2) (t - a)); intros.
    apply Hd; [| lra]. apply ball_R. rewrite Rabs_left; lra.
Qed.

(** Times just after r < b, or just before r > a, are times of the lifetime. *)
Lemma at_right_around r : a <= r < b -> filter_le (at_right r) (around r).
Proof.
  intros Hr P [d H].
  assert (Hp : 0 < Rmin d (b - r)) by (apply Rmin_pos; [apply cond_pos | lra]).
  exists (mkposreal _ Hp). intros s Hs L.
  assert (B : Rabs (s - r) < Rmin d (b - r)) by exact Hs.
  generalize (Rmin_l d (b - r)) (Rmin_r d (b - r)) (Rle_abs (s - r)). intros.
  apply H; [apply ball_R |]; lra.
Qed.

Lemma at_left_around r : a < r <= b -> filter_le (at_left r) (around r).
Proof.
  intros Hr P [d H].
  assert (Hp : 0 < Rmin d (r - a)) by (apply Rmin_pos; [apply cond_pos | lra]).
  exists (mkposreal _ Hp). intros s Hs L.
  assert (B : Rabs (s - r) < Rmin d (r - a)) by exact Hs.
  generalize (Rmin_l d (r - a)) (Rmin_r d (r - a)). intros. rewrite Rabs_left in B by lra.
  apply H; [apply ball_R; rewrite Rabs_left |]; lra.
Qed.

Lemma around_near r : filter_le (around r) (near r).
Proof. intros P [d H]. exists d. intros s Hs [J _]. exact (H s Hs J). Qed.

(** The definition of the derivative, in epsilons. *)
Lemma derivative_textbook (F : (R -> Prop) -> Prop) (f : R -> V) (t : R) (l : V) :
  ProperFilter F -> is_filter_lim F t ->
  (filterdiff f F (fun h : R => h [*] l) <->
   forall e : posreal, F (fun s => norm (f s [-] f t [-] (s - t) [*] l) <= e * Rabs (s - t))).
Proof.
  intros HF Ht. split.
  - intros [_ H] e. exact (H t Ht e).
  - intro H. split; [apply (is_linear_scal_l (K := R_AbsRing) l) |].
    intros x Hx. rewrite <- (limit_at_unique F t x HF Ht Hx). exact H.
Qed.

Lemma derive_in_of_derive f t l : a <= t <= b -> is_derive f t l -> is_derive_in f t l.
Proof.
  intros Ht H. apply (@filterdiff_locally _ _ _ (near t) (near_proper t Ht) f t); [apply near_tends | exact H].
Qed.

Lemma continuous_in_of_continuous (f : R -> V) t : continuous f t -> continuous_in f t.
Proof. intros H P HP. destruct (H P HP) as [d Hd]. exists d. intros s Hs _. exact (Hd s Hs). Qed.

Lemma derive_in_ext_near f g t l : a <= t <= b -> near t (fun s => f s = g s) ->
  is_derive_in f t l -> is_derive_in g t l.
Proof.
  intros Ht E. apply (@filterdiff_ext_loc _ _ _ (near t) (within_filter _ _ _ _)); [exact E |].
  intros x Hx. rewrite <- (limit_at_unique _ t x (near_proper t Ht) (near_tends t) Hx).
  destruct E as [d E]. apply E; [apply ball_center | exact Ht].
Qed.

Lemma derive_in_ext f g t l : a <= t <= b -> (forall s, a <= s <= b -> f s = g s) ->
  is_derive_in f t l -> is_derive_in g t l.
Proof. intros Ht E. apply derive_in_ext_near; [exact Ht | apply near_all, E]. Qed.

Lemma derive_in_value f t l m : l = m -> is_derive_in f t l -> is_derive_in f t m.
Proof. intros ->. exact (fun H => H). Qed.

Lemma derive_in_continuous f t l : is_derive_in f t l -> continuous_in f t.
Proof.
  intro H. apply (@filterdiff_continuous_aux _ _ _ (near t) (within_filter _ _ _ _)); [| apply near_tends].
  exists (fun h => h [*] l). exact H.
Qed.

Lemma derive_in_minus f g t l m :
  is_derive_in f t l -> is_derive_in g t m -> is_derive_in (fun s => f s [-] g s) t (l [-] m).
Proof.
  intros Hf Hg. eapply filterdiff_ext_lin.
  - apply (@filterdiff_minus_fct _ _ _ (near t) (within_filter _ _ _ _) f g _ _ Hf Hg).
  - intro h. symmetry. exact (scal_minus_distr_l h l m).
Qed.

(** (k f)' = k' f + k f' for a number k(s) and a vector f(s). *)
Lemma product_rule (k : R -> R) (f : R -> V) t (dk : R) (l : V) : a <= t <= b ->
  is_derive k t dk -> is_derive_in f t l ->
  is_derive_in (fun s => k s [*] f s) t (dk [*] f t [+] k t [*] l).
Proof.
  intros Ht Hk Hf.
  assert (P := near_proper t Ht).
  assert (Hk' : filterdiff k (near t) (fun h : R => h * dk)).
  { apply (filterdiff_locally k t); [apply near_tends | exact Hk]. }
  eapply filterdiff_ext_lin.
  - apply (filterdiff_comp_2 k f (fun (c : R) (x : V) => c [*] x) _ _
             (fun c x => plus (scal c (f t)) (scal (k t) x)) Hk' Hf).
    apply (filterdiff_scal (k t, f t)); [| exact Rmult_comm].
    intros Q HQ.
    assert (L : filterlim (fun s => (k s, f s)) (near t) (filter_prod (locally (k t)) (locally (f t)))).
    { apply filterlim_pair.
      - apply (filterdiff_continuous_aux k); [eexists; exact Hk' | apply near_tends].
      - apply (derive_in_continuous f t l Hf). }
    apply L. destruct HQ as [e He].
    apply (Filter_prod _ _ _ (ball (k t) e) (ball (f t) e)); [exists e; auto | exists e; auto |].
    intros x y Hx Hy. apply He. split; assumption.
  - intro h. exact (scal_product h dk (k t) (f t) l).
Qed.

(** The derivative is the limit of the difference quotients. *)
Lemma quotient_tends f t l : a <= t <= b -> is_derive_in f t l ->
  filterlim (fun s => / (s - t) [*] (f s [-] f t)) (around t) (locally l).
Proof.
  intros Ht Hf.
  assert (Q := proj1 (derivative_textbook _ f t l (near_proper t Ht) (near_tends t)) Hf). clear Hf.
  apply filterlim_locally_ball_norm. intro e.
  assert (He : 0 < e / 2) by (generalize (cond_pos e); lra).
  destruct (Q (mkposreal _ He)) as [d Hd]. exists d.
  intros s Hs [Js Ns]. specialize (Hd s Hs Js). simpl in Hd. unfold ball_norm.
  assert (Pos : 0 < Rabs (s - t)) by (apply Rabs_pos_lt; lra).
  assert (E : / (s - t) [*] (f s [-] f t) [-] l = / (s - t) [*] (f s [-] f t [-] (s - t) [*] l)).
  { assert (L : / (s - t) [*] ((s - t) [*] l) = l) by (apply scal_inverse_l; lra).
    rewrite <- L at 1. symmetry.
    exact (scal_minus_distr_l (/ (s - t)) (f s [-] f t) ((s - t) [*] l)). }
  eapply Rle_lt_trans; [right; apply f_equal; exact E |].
  eapply Rle_lt_trans; [apply (norm_scal (/ (s - t)) (f s [-] f t [-] (s - t) [*] l)) |].
  change (abs (/ (s - t))) with (Rabs (/ (s - t))). rewrite Rabs_inv.
  apply Rle_lt_trans with (/ Rabs (s - t) * (e / 2 * Rabs (s - t))).
  - apply Rmult_le_compat_l; [left; apply Rinv_0_lt_compat, Pos | exact Hd].
  - replace (/ Rabs (s - t) * (e / 2 * Rabs (s - t))) with (e / 2) by (field; lra).
    generalize (cond_pos e); lra.
Qed.

Lemma derive_in_unique f t l m : a < b -> a <= t <= b ->
  is_derive_in f t l -> is_derive_in f t m -> l = m.
Proof.
  intros lifetime Ht Hl Hm. assert (P := around_proper t lifetime Ht).
  apply (filterlim_locally_unique (K := R_AbsRing) (V := V) (F := around t)
           (fun s => / (s - t) [*] (f s [-] f t)) l m).
  - exact (quotient_tends f t l Ht Hl).
  - exact (quotient_tends f t m Ht Hm).
Qed.

(** A function whose derivative is zero is constant. *)
Lemma constant_if_derivative_is_zero f c d : a <= c -> c < d -> d <= b ->
  (forall t, c <= t <= d -> is_derive_in f t zero) -> f c = f d.
Proof.
  intros Hc Hcd Hd H.
  transitivity (f (clamp c d c)); [rewrite clamp_id by lra; reflexivity |].
  transitivity (f (clamp c d d)); [| rewrite clamp_id by lra; reflexivity].
  apply (eq_is_derive (fun s => f (clamp c d s)) c d); [| exact Hcd].
  intros t Ht.
  apply (derivative_textbook (locally t) (fun s => f (clamp c d s)) t zero (locally_filter t));
    [intros P HP; exact HP |].
  intro e. assert (J : a <= t <= b) by lra.
  destruct (proj1 (derivative_textbook _ f t zero (near_proper t J) (near_tends t)) (H t Ht) e) as [p Hp].
  exists p. intros s Hs.
  assert (B := clamp_in c d s (Rlt_le _ _ Hcd)).
  assert (S := clamp_shrinks c d s t). rewrite (clamp_id c d t) in * by exact Ht.
  assert (Hs' : ball t p (clamp c d s)) by (apply ball_R; eapply Rle_lt_trans; [exact S | exact Hs]).
  specialize (Hp _ Hs' ltac:(lra)).
  assert (Z : forall k : R, k [*] (zero : V) = zero) by (intro k; exact (scal_zero_r k)).
  rewrite Z in *.
  eapply Rle_trans; [exact Hp |]. apply Rmult_le_compat_l; [left; apply cond_pos | exact S].
Qed.

Lemma constant_on_lifetime f r t : a <= r <= b -> a <= t <= b ->
  (forall s, a <= s <= b -> is_derive_in f s zero) -> f r = f t.
Proof.
  intros Hr Ht H. destruct (Rtotal_order r t) as [L | [-> | L]]; [| reflexivity | symmetry].
  - apply (constant_if_derivative_is_zero f r t); try lra. intros s Hs. apply H. lra.
  - apply (constant_if_derivative_is_zero f t r); try lra. intros s Hs. apply H. lra.
Qed.
End Segment.

(** ** 3. The average velocity along one trajectory *)

(** Definition of u along one trajectory: u(z_t, r, t) = 1/(t - r) * integral of w from r to t. Source: mf:3.
    In Coq 1/0 is some number and 0 times it is 0, so [average w r r] is 0, which means nothing: statements about the
    average itself at t = r are limits. *)
Definition average {V : CompleteNormedModule R_AbsRing} (w : R -> V) (r t : R) : V := / (t - r) [*] RInt w r t.

Section Average.
Context {V : CompleteNormedModule R_AbsRing}.
Variables (a b : R) (w : R -> V).
Hypothesis lifetime : a < b.
Hypothesis w_continuous : forall t, a <= t <= b -> continuous_in a b w t.

Let extended (s : R) : V := w (clamp a b s).

Lemma extended_continuous t : continuous extended t.
Proof.
  intros P HP.
  destruct (w_continuous (clamp a b t) (clamp_in a b t (Rlt_le _ _ lifetime)) P HP) as [d Hd].
  exists d. intros s Hs. apply Hd; [| apply clamp_in, Rlt_le, lifetime].
  apply ball_R. eapply Rle_lt_trans; [apply clamp_shrinks | exact Hs].
Qed.

Lemma extended_agrees r t : a <= r <= b -> a <= t <= b ->
  forall s, Rmin r t < s < Rmax r t -> extended s = w s.
Proof.
  intros Hr Ht s Hs. unfold extended. f_equal. apply clamp_id.
  revert Hs. unfold Rmin, Rmax. destruct (Rle_dec r t); lra.
Qed.

Lemma extended_integrable r t : ex_RInt extended r t.
Proof. apply (ex_RInt_continuous extended). intros s _. apply extended_continuous. Qed.

Lemma integrable r t : a <= r <= b -> a <= t <= b -> ex_RInt w r t.
Proof.
  intros Hr Ht. apply ex_RInt_ext with extended; [exact (extended_agrees r t Hr Ht) | apply extended_integrable].
Qed.

(** The fundamental theorem of calculus on [a, b], for w continuous on [a, b]. *)
Lemma integral_derivative r t : a <= r <= b -> a <= t <= b ->
  is_derive_in a b (fun s => RInt w r s) t (w t).
Proof.
  intros Hr Ht.
  apply (derive_in_ext a b (fun s => RInt extended r s)); [exact Ht | |].
  - intros s Hs. apply RInt_ext. exact (extended_agrees r s Hr Hs).
  - apply derive_in_of_derive; [exact Ht |].
    replace (w t) with (extended t) by (unfold extended; f_equal; apply clamp_id, Ht).
    apply (is_derive_RInt extended (fun s => RInt extended r s) r t).
    + apply filter_forall. intro s. apply RInt_correct, extended_integrable.
    + apply extended_continuous.
Qed.

(** THEOREM (displacement). (t - r) u(z_t, r, t) = integral of w from r to t.  Source: mf:4.
    Hypotheses: none; any r and t, r = t included, where both sides are 0.
    Not said: that the integral is z_t - z_r; that is [displacement_of_the_state]. *)
Theorem displacement r t : (t - r) [*] average w r t = RInt w r t.
Proof.
  unfold average. destruct (Req_dec t r) as [-> | H].
  - rewrite RInt_point, Rminus_diag_eq by reflexivity.
    apply (scal_R_zero (V := CompleteNormedModule.ModuleSpace _ V)).
  - apply scal_inverse_r. lra.
Qed.

(** THEOREM (consistency). (t - r) u(z_t, r, t) = (s - r) u(z_s, r, s) + (t - s) u(z_t, s, t).
    Source: mf:consistency.
    Hypotheses: w continuous on [a, b]; r, s, t anywhere in [a, b], in any order, coincidences included.
    Not said: that this determines u. *)
Theorem consistency r s t : a <= r <= b -> a <= s <= b -> a <= t <= b ->
  (t - r) [*] average w r t = (s - r) [*] average w r s [+] (t - s) [*] average w s t.
Proof.
  intros Hr Hs Ht. rewrite !displacement. symmetry. apply RInt_Chasles; apply integrable; assumption.
Qed.

(** THEOREM (symmetry). Along one trajectory the average over [r, t] does not depend on the direction:
    u(z_t, r, t) = u(z_r, t, r).  Source: mf:3.
    Hypotheses: w continuous on [a, b].
    Not said: that u(z, r, t) = u(z, t, r) at one state z; that is false. The state moves with the second time. *)
Theorem average_is_symmetric r t : a <= r <= b -> a <= t <= b -> average w r t = average w t r.
Proof.
  intros Hr Ht. unfold average.
  rewrite <- (opp_RInt_swap w r t) by (apply integrable; assumption).
  replace (/ (r - t)) with (- / (t - r)) by (rewrite <- Rinv_opp; f_equal; ring).
  rewrite scal_R_opp, <- (scal_opp_r (/ (t - r))), opp_opp. reflexivity.
Qed.

(** THEOREM (differentiability). t |-> u(z_t, r, t) has a derivative at every t <> r of the lifetime.  Source: mf:5.
    Hypotheses: w continuous on [a, b]. w need not be differentiable.
    Not said: anything at t = r. *)
Theorem average_is_differentiable r t : a <= r <= b -> a <= t <= b -> t <> r ->
  exists du : V, is_derive_in a b (fun s => average w r s) t du.
Proof.
  intros Hr Ht Ne. eexists. unfold average.
  apply (product_rule a b (fun s => / (s - r)) (fun s => RInt w r s) t (- / ((t - r) * (t - r)))).
  - exact Ht.
  - auto_derive; [lra | field; lra].
  - exact (integral_derivative r t Hr Ht).
Qed.

(** THEOREM (the displacement differentiated). u + (t - r) du/dt = v.  Source: mf:5.
    Hypotheses: w continuous on [a, b]; du is the derivative of t |-> u(z_t, r, t), along the trajectory with r fixed.
    Proof: both sides are the derivative of (t - r) u = integral of w, by the product rule and by the fundamental
    theorem of calculus; derivatives are unique.
    Not said: that du is a Jacobian-vector product; that is [total_derivative_is_jvp]. *)
Theorem derivative_of_displacement r t (du : V) : a <= r <= b -> a <= t <= b ->
  is_derive_in a b (fun s => average w r s) t du ->
  average w r t [+] (t - r) [*] du = w t.
Proof.
  intros Hr Ht Hu.
  apply (derive_in_unique a b (fun s => RInt w r s) t _ _ lifetime Ht); [| exact (integral_derivative r t Hr Ht)].
  apply (derive_in_ext a b (fun s => (s - r) [*] average w r s)); [exact Ht | |].
  - intros s _. apply displacement.
  - rewrite <- (scal_R_one (average w r t)).
    apply (product_rule a b (fun s => s - r) (fun s => average w r s) t 1 du); [exact Ht | | exact Hu].
    auto_derive; [trivial | ring].
Qed.

(** THEOREM (MeanFlow identity). u = v - (t - r) du/dt.  Source: mf:6.
    Hypotheses and what is not said: as above. *)
Theorem meanflow_identity r t (du : V) : a <= r <= b -> a <= t <= b ->
  is_derive_in a b (fun s => average w r s) t du ->
  average w r t = w t [-] (t - r) [*] du.
Proof. intros Hr Ht Hu. apply move_right. exact (derivative_of_displacement r t du Hr Ht Hu). Qed.

(** THEOREM (Lagrangian form). u = v(z_r, r) + (t - r) du/dr, where t stays and the other end of the interval moves.
    Source: fmm:lagrangian.
    Hypotheses: w continuous on [a, b]; du is the derivative of r |-> u(z_t, r, t).
    Not said: that v(z_r, r) is known before u is: z_r is the end of the step. *)
Theorem lagrangian_identity r t (du : V) : a <= r <= b -> a <= t <= b ->
  is_derive_in a b (fun s => average w s t) r du ->
  average w r t = w r [+] (t - r) [*] du.
Proof.
  intros Hr Ht Hu. rewrite average_is_symmetric by assumption.
  rewrite (meanflow_identity t r du Ht Hr).
  - unfold minus. f_equal. replace (r - t) with (- (t - r)) by ring.
    rewrite scal_R_opp. apply (opp_opp (G := CompleteNormedModule.AbelianGroup _ V)).
  - apply (derive_in_ext a b (fun s => average w s t)); [exact Hr | | exact Hu].
    intros s Hs. apply average_is_symmetric; assumption.
Qed.

(** THEOREM (limit, the end moves). u(z_t, r, t) -> v(z_r, r) as t -> r within [a, b], t <> r.  Source: mf:limit.
    Hypotheses: w continuous on [a, b].
    Not said: any rate. *)
Theorem limit_end_to_start r : a <= r <= b ->
  filterlim (fun t => average w r t) (around a b r) (locally (w r)).
Proof.
  intro Hr.
  apply (filterlim_ext (fun t => / (t - r) [*] (RInt w r t [-] RInt w r r))).
  - intro t. unfold average. rewrite RInt_point. f_equal. exact (minus_zero_r (RInt w r t)).
  - exact (quotient_tends a b (fun t => RInt w r t) r (w r) Hr (integral_derivative r r Hr Hr)).
Qed.

(** THEOREM (limit, the start moves). u(z_t, r, t) -> v(z_t, t) as r -> t: the boundary condition as the paper has it.
    Source: mf:limit.  Hypotheses and what is not said: as above. *)
Theorem limit_start_to_end t : a <= t <= b ->
  filterlim (fun r => average w r t) (around a b t) (locally (w t)).
Proof.
  intro Ht. apply (filterlim_within_ext _ (fun r => average w t r)).
  - intros r [Hr _]. apply average_is_symmetric; assumption.
  - exact (limit_end_to_start t Ht).
Qed.
End Average.

(** ** 4. The converse: the identity determines u, if (t - r) u tends to 0 *)

Section Converse.
Context {V : CompleteNormedModule R_AbsRing}.
Variables (a b : R) (w : R -> V).
Hypothesis lifetime : a < b.
Hypothesis w_continuous : forall t, a <= t <= b -> continuous_in a b w t.
Let N := CompleteNormedModule.NormedModule R_AbsRing V.

(** What (s - r) u(s) has too much. The identity says that it does not move; the limit says that it starts at 0. *)
Definition gap (u : R -> V) (r s : R) : V := (s - r) [*] u s [-] RInt w r s.

Lemma gap_is_constant u du r s : a <= r <= b -> a <= s <= b ->
  is_derive_in a b u s du -> u s = w s [-] (s - r) [*] du ->
  is_derive_in a b (gap u r) s zero.
Proof.
  intros Hr Hs Hu I.
  assert (E : 1 [*] u s [+] (s - r) [*] du [-] w s = zero).
  { transitivity (w s [-] w s); [| exact (minus_eq_zero (w s))].
    apply (f_equal (fun x => x [-] w s)). rewrite (scal_R_one (u s)).
    exact (move_left _ _ _ I). }
  apply (derive_in_value a b _ s _ zero E).
  apply (derive_in_minus a b (fun s => (s - r) [*] u s) (fun s => RInt w r s)).
  - apply (product_rule a b (fun s => s - r) u s 1 du); [exact Hs | | exact Hu].
    auto_derive; [trivial | ring].
  - exact (integral_derivative a b w lifetime w_continuous r s Hr Hs).
Qed.

Lemma gap_tends_to_zero (u : R -> V) r (F : (R -> Prop) -> Prop) : a <= r <= b -> Filter F ->
  filter_le F (around a b r) ->
  filterlim (fun s => (s - r) [*] u s) F (locally (zero : V)) ->
  filterlim (gap u r) F (locally (zero : V)).
Proof.
  intros Hr FF Le Hu.
  assert (L : filterlim (fun s => RInt w r s) F (locally (zero : V))).
  { apply (filterlim_filter_le_1 _ Le), (filterlim_filter_le_1 _ (around_near a b r)).
    rewrite <- (RInt_point r w).
    exact (derive_in_continuous a b (fun s => RInt w r s) r (w r)
             (integral_derivative a b w lifetime w_continuous r r Hr Hr)). }
  rewrite <- (minus_eq_zero (zero : V)). unfold gap, minus.
  apply (filterlim_comp_2 (G := locally (zero : V)) (H := locally (opp (zero : V)))
    (fun s => (s - r) [*] u s) (fun s => opp (RInt w r s)) (fun x y => x [+] y) Hu).
  - apply (filterlim_comp _ _ _ (fun s => RInt w r s) opp F (locally (zero : V))); [exact L |].
    apply (filterlim_opp (V := N)).
  - apply (filterlim_plus (V := N)).
Qed.

Lemma no_gap_no_error u r t : t <> r -> gap u r t = zero -> u t = average w r t.
Proof.
  intros Ne G. unfold average. rewrite <- (equal_if_difference_is_zero _ _ G).
  symmetry. apply (scal_inverse_l (V := CompleteNormedModule.ModuleSpace _ V)). lra.
Qed.

Lemma limit_of_a_constant (F : (R -> Prop) -> Prop) (g : R -> V) (c : V) : ProperFilter F ->
  F (fun s => g s = c) -> filterlim g F (locally (zero : V)) -> c = zero.
Proof.
  intros FF E L.
  apply (filterlim_locally_unique (K := R_AbsRing) (V := N) (F := F) g c zero); [| exact L].
  apply (filterlim_ext_loc (fun _ => c)); [| apply filterlim_const].
  apply (filter_imp (fun s => g s = c)); [intros s Hs; symmetry; exact Hs | exact E].
Qed.

Lemma bounded_gives_limit (u : R -> V) (r M : R) (F : (R -> Prop) -> Prop) : Filter F -> filter_le F (locally r) ->
  F (fun s => norm (u s) <= M) -> filterlim (fun s => (s - r) [*] u s) F (locally (zero : V)).
Proof.
  intros FF Le B.
  apply (filterlim_locally_ball_norm (U := N)). intro e.
  assert (Pos : 0 < Rabs M + 1) by (generalize (Rabs_pos M); lra).
  assert (He : 0 < e / (Rabs M + 1)) by (apply Rdiv_lt_0_compat; [apply cond_pos | exact Pos]).
  assert (S : F (fun s => Rabs (s - r) < e / (Rabs M + 1))).
  { apply Le. exists (mkposreal _ He). intros s Hs. exact Hs. }
  generalize (filter_and _ _ S B). apply filter_imp. intros s [Hs Hb].
  unfold ball_norm.
  assert (E : (s - r) [*] u s [-] zero = (s - r) [*] u s) by exact (minus_zero_r _).
  eapply Rle_lt_trans; [right; apply f_equal; exact E |].
  eapply Rle_lt_trans; [apply (norm_scal (s - r) (u s)) |].
  change (abs (s - r)) with (Rabs (s - r)).
  apply Rle_lt_trans with (Rabs (s - r) * (Rabs M + 1)).
  - apply Rmult_le_compat_l; [apply Rabs_pos |]. generalize (Rle_abs M); lra.
  - replace (pos e) with (e / (Rabs M + 1) * (Rabs M + 1)) by (field; lra).
    apply Rmult_lt_compat_r; assumption.
Qed.

(** THEOREM (converse, after r). If u satisfies the identity at every s with r < s <= t, and (s - r) u(s) -> 0 as
    s decreases to r, then u(t) is the average velocity over [r, t].  Source: mf:B3, mf:6.
    Hypotheses: w continuous on [a, b]; u differentiable in s for r < s <= t. Nothing at s = r, nothing at s < r, and
    no bound away from r.
    Not said: that an approximate solution is close to the average. *)
Theorem converse_after (u du : R -> V) r t : a <= r -> r < t -> t <= b ->
  (forall s, r < s <= t -> is_derive_in a b u s (du s)) ->
  (forall s, r < s <= t -> u s = w s [-] (s - r) [*] du s) ->
  filterlim (fun s => (s - r) [*] u s) (at_right r) (locally (zero : V)) ->
  u t = average w r t.
Proof.
  intros Hr Hrt Ht Hd Hi Hl. assert (Jr : a <= r < b) by lra.
  apply no_gap_no_error; [lra |].
  apply (limit_of_a_constant (at_right r) (gap u r)); [apply at_right_proper_filter | |].
  - assert (Hp : 0 < t - r) by lra. exists (mkposreal _ Hp). intros s Hs L.
    assert (s < t) by (assert (B : Rabs (s - r) < t - r) by exact Hs; generalize (Rle_abs (s - r)); lra).
    apply (constant_if_derivative_is_zero a b (gap u r) s t); try lra.
    intros x Hx. apply (gap_is_constant u (du x)); try lra; [apply Hd | apply Hi]; lra.
  - apply gap_tends_to_zero; [lra | apply at_right_proper_filter | exact (at_right_around a b r Jr) | exact Hl].
Qed.

(** THEOREM (converse, before r). The same for a time t before r.  Source: mf:B3, mf:6. *)
Theorem converse_before (u du : R -> V) r t : a <= t -> t < r -> r <= b ->
  (forall s, t <= s < r -> is_derive_in a b u s (du s)) ->
  (forall s, t <= s < r -> u s = w s [-] (s - r) [*] du s) ->
  filterlim (fun s => (s - r) [*] u s) (at_left r) (locally (zero : V)) ->
  u t = average w r t.
Proof.
  intros Ht Hrt Hr Hd Hi Hl. assert (Jr : a < r <= b) by lra.
  apply no_gap_no_error; [lra |].
  apply (limit_of_a_constant (at_left r) (gap u r)); [apply at_left_proper_filter | |].
  - assert (Hp : 0 < r - t) by lra. exists (mkposreal _ Hp). intros s Hs L.
    assert (t < s) by (assert (B : Rabs (s - r) < r - t) by exact Hs; rewrite Rabs_left in B; lra).
    symmetry. apply (constant_if_derivative_is_zero a b (gap u r) t s); try lra.
    intros x Hx. apply (gap_is_constant u (du x)); try lra; [apply Hd | apply Hi]; lra.
  - apply gap_tends_to_zero; [lra | apply at_left_proper_filter | exact (at_left_around a b r Jr) | exact Hl].
Qed.

(** THEOREM (converse, bounded). A solution on r < s <= t that is bounded near r, |u| <= M, is the average velocity.
    Source: mf:B3.  Hypotheses: as in [converse_after], with a bound for the limit.
    Not said: that the bound can go; [refuted_converse_without_a_bound] shows that it cannot. *)
Theorem converse_bounded (u du : R -> V) r t M : a <= r -> r < t -> t <= b ->
  (forall s, r < s <= t -> is_derive_in a b u s (du s)) ->
  (forall s, r < s <= t -> u s = w s [-] (s - r) [*] du s) ->
  at_right r (fun s => norm (u s) <= M) ->
  u t = average w r t.
Proof.
  intros Hr Hrt Ht Hd Hi Hb. apply (converse_after u du); try assumption.
  apply (bounded_gives_limit u r M); [apply at_right_proper_filter | apply filter_le_within | exact Hb].
Qed.

(** THEOREM (converse, both sides). A solution at every s <> r of [a, b], bounded near r, is the average velocity at
    every t <> r.  Source: mf:B3. *)
Theorem converse_both_sides (u du : R -> V) r t M : a <= r <= b -> a <= t <= b -> t <> r ->
  (forall s, a <= s <= b -> s <> r -> is_derive_in a b u s (du s)) ->
  (forall s, a <= s <= b -> s <> r -> u s = w s [-] (s - r) [*] du s) ->
  around a b r (fun s => norm (u s) <= M) ->
  u t = average w r t.
Proof.
  intros Hr Ht Ne Hd Hi Hb. destruct (Rlt_or_le r t) as [L | L].
  - apply (converse_bounded u du r t M); try lra.
    + intros s Hs. apply Hd; lra.
    + intros s Hs. apply Hi; lra.
    + apply (at_right_around a b r ltac:(lra)), Hb.
  - apply (converse_before u du); try lra.
    + intros s Hs. apply Hd; lra.
    + intros s Hs. apply Hi; lra.
    + apply (bounded_gives_limit u r M); [apply at_left_proper_filter | apply filter_le_within |].
      apply (at_left_around a b r ltac:(lra)), Hb.
Qed.
End Converse.

(** ** 5. Fields and networks: dz/dt = v(z, t), and U(z, r, t) *)

Lemma filterdiff_pair {T U W : NormedModule R_AbsRing} (F : (T -> Prop) -> Prop)
  (f : T -> U) (g : T -> W) (lf : T -> U) (lg : T -> W) :
  Filter F -> filterdiff f F lf -> filterdiff g F lg ->
  filterdiff (V := prod_NormedModule _ U W) (fun t => (f t, g t)) F (fun t => (lf t, lg t)).
Proof.
  intros FF Hf Hg.
  apply (filterdiff_comp_2 (W := prod_NormedModule _ U W) f g pair lf lg pair Hf Hg).
  apply (filterdiff_ext_lin _ (fun p => p)); [| intros [x y]; reflexivity].
  apply (filterdiff_ext (fun p => p)); [intros [x y]; reflexivity |].
  apply filterdiff_id.
Qed.

Section Field.
Context {V : CompleteNormedModule R_AbsRing}.
Variables (a b : R) (v : V -> R -> V).
Hypothesis lifetime : a < b.
Let N := CompleteNormedModule.NormedModule R_AbsRing V.
Let G := CompleteNormedModule.AbelianGroup R_AbsRing V.

(** The arguments of a network: a state and two times, (z, (r, t)), an element of V x (R x R). *)
Local Notation Times := (prod_NormedModule R_AbsRing R_NormedModule R_NormedModule).
Local Notation Point := (prod_NormedModule R_AbsRing N Times).

(** The velocity met along a curve z. *)
Definition along (z : R -> V) (t : R) : V := v (z t) t.

(** A trajectory: dz/dt = v(z_t, t) on [a, b] (one-sided at the ends), and t |-> v(z_t, t) is continuous there.
    Source: mf:2.  v itself need be neither continuous elsewhere nor Lipschitz. *)
Definition trajectory (z : R -> V) : Prop :=
  (forall t, a <= t <= b -> is_derive_in a b z t (v (z t) t)) /\
  (forall t, a <= t <= b -> continuous_in a b (along z) t).

(** THEOREM (displacement of the state). (t - r) u(z_t, r, t) = z_t - z_r.  Source: mf:4, mf:2.
    Hypotheses: z is a trajectory; r and t in [a, b] in any order.
    Not said: that there is a trajectory. *)
Theorem displacement_of_the_state (z : R -> V) r t : trajectory z -> a <= r <= b -> a <= t <= b ->
  (t - r) [*] average (along z) r t = z t [-] z r.
Proof.
  intros [ode cont] Hr Ht. rewrite displacement.
  assert (E : z r [-] RInt (along z) r r = z t [-] RInt (along z) r t).
  { apply (constant_on_lifetime a b (fun s => z s [-] RInt (along z) r s)); try assumption.
    intros s Hs. apply (derive_in_value a b _ s _ zero (minus_eq_zero (along z s))).
    apply (derive_in_minus a b z (fun s => RInt (along z) r s)).
    - apply ode, Hs.
    - exact (integral_derivative a b (along z) lifetime cont r s Hr Hs). }
  rewrite RInt_point in E. transitivity (z t [-] (z t [-] RInt (along z) r t)).
  - apply (back_and_forth (G := G)).
  - rewrite <- E. apply f_equal. exact (minus_zero_r (z r)).
Qed.

(** THEOREM (sampling). z_r = z_t - (t - r) u(z_t, r, t), exactly, for a step of any length in either direction.
    Source: mf:12.
    Hypotheses: z is a trajectory.
    Not said: that a network's u is this u. *)
Theorem sampling (z : R -> V) r t : trajectory z -> a <= r <= b -> a <= t <= b ->
  z r = z t [-] (t - r) [*] average (along z) r t.
Proof.
  intros Hz Hr Ht. rewrite (displacement_of_the_state z r t Hz Hr Ht). apply (back_and_forth (G := G)).
Qed.

(** THEOREM (total derivative). d/dt U(z_t, r, t) = DU(z_t, r, t)[v, 0, 1]: the Jacobian-vector product with tangent
    (v, 0, 1).  Source: mf:7, mf:8.
    Hypotheses: z is a trajectory; U : V x (R x R) -> V is (Frechet) differentiable at (z_t, (r, t)) with derivative
    DU. U is any function: no relation to the average velocity is assumed, and r may be anything, r = t included.
    Not said: that U is differentiable; that a program's JVP computes DU. *)
Theorem total_derivative_is_jvp (z : R -> V) (U DU : Point -> V) r t : trajectory z -> a <= t <= b ->
  filterdiff U (locally (z t, (r, t))) DU ->
  is_derive_in a b (fun s => U (z s, (r, s))) t (DU (v (z t) t, (0, 1))).
Proof.
  intros [ode _] Ht HU.
  pose (curve := fun s : R => (z s, (r, s)) : Point).
  assert (P := near_proper a b t Ht).
  assert (Hc : filterdiff curve (near a b t) (fun h : R => (h [*] v (z t) t, (zero, h)) : Point)).
  { apply (filterdiff_pair (T := R_NormedModule) (U := N) (W := Times));
      [apply filter_filter | exact (ode t Ht) |].
    apply (filterdiff_pair (T := R_NormedModule) (U := R_NormedModule) (W := R_NormedModule));
      [apply filter_filter | apply filterdiff_const | apply filterdiff_id]. }
  apply (filterdiff_ext_lin (V := N) (fun s => U (curve s)) (fun h : R => DU (h [*] v (z t) t, (zero, h)))).
  - apply (filterdiff_comp (V := Point) (W := N) curve U _ DU Hc).
    apply (filterdiff_locally U (z t, (r, t))); [| exact HU].
    intros Q HQ.
    apply (filterdiff_continuous_aux (V := Point) curve (ex_intro _ _ Hc) t (near_tends a b t)). exact HQ.
  - intro h. destruct HU as [[_ linear _] _].
    transitivity (DU (h [*] ((v (z t) t, (0, 1)) : Point))); [| exact (linear h (v (z t) t, (0, 1)))].
    apply f_equal.
    change ((h [*] v (z t) t, (0, h)) = (h [*] v (z t) t, (h * 0, h * 1))).
    rewrite Rmult_0_r, Rmult_1_r. reflexivity.
Qed.

(** The residual of the identity with the JVP in it: U(z_t, r, t) = v - (t - r) DU[v, 0, 1].  Source: mf:10.
    A network whose loss mf:9 is zero satisfies this wherever the loss looks (and v is the marginal velocity). *)
Definition residual_is_zero (z : R -> V) (U DU : Point -> V) r t : Prop :=
  U (z t, (r, t)) = v (z t) t [-] (t - r) [*] DU (v (z t) t, (0, 1)).

(** THEOREM (necessity). A differentiable U that agrees with the average velocity along a trajectory has zero residual.
    Source: mf:8, mf:10.
    Hypotheses: z is a trajectory; t <> r; U(z_s, r, s) = u(z_s, r, s) for all s <> r in [a, b]; U differentiable at
    (z_t, (r, t)). Nothing is asked of U at s = r.
    Not said: the converse; that is next. *)
Theorem training_identity (z : R -> V) (U DU : Point -> V) r t :
  trajectory z -> a <= r <= b -> a <= t <= b -> t <> r ->
  (forall s, a <= s <= b -> s <> r -> U (z s, (r, s)) = average (along z) r s) ->
  filterdiff U (locally (z t, (r, t))) DU ->
  residual_is_zero z U DU r t.
Proof.
  intros Hz Hr Ht Ne E HU. unfold residual_is_zero. etransitivity; [exact (E t Ht Ne) |].
  apply (meanflow_identity a b (along z) lifetime (proj2 Hz) r t _ Hr Ht).
  apply (derive_in_ext_near a b (fun s => U (z s, (r, s)))); [exact Ht | |].
  - assert (P : 0 < Rabs (t - r)) by (apply Rabs_pos_lt; lra).
    exists (mkposreal _ P). intros s Hs Js. apply E; [exact Js |]. intros ->.
    assert (B : Rabs (r - t) < Rabs (t - r)) by exact Hs. rewrite Rabs_minus_sym in B. lra.
  - exact (total_derivative_is_jvp z U DU r t Hz Ht HU).
Qed.

(** THEOREM (sufficiency along a trajectory). If the residual is zero at (z_s, r, s) for r < s <= t, and U stays bounded
    as s decreases to r, then U(z_t, r, t) is the average velocity.  Source: mf:10, mf:B3.
    Hypotheses: z is a trajectory; U differentiable at those points. Nothing on the diagonal s = r nor for s < r, and
    nothing off the trajectory except what differentiability needs.
    Not said: that a small residual gives a small error. *)
Theorem zero_residual_is_average (z : R -> V) (U : Point -> V) (DU : R -> Point -> V) r t M :
  trajectory z -> a <= r -> r < t -> t <= b ->
  (forall s, r < s <= t -> filterdiff U (locally (z s, (r, s))) (DU s)) ->
  (forall s, r < s <= t -> residual_is_zero z U (DU s) r s) ->
  at_right r (fun s => norm (U (z s, (r, s))) <= M) ->
  U (z t, (r, t)) = average (along z) r t.
Proof.
  intros Hz Hr Hrt Ht HU I B.
  apply (converse_bounded a b (along z) lifetime (proj2 Hz) (fun s => U (z s, (r, s)))
           (fun s => DU s (v (z s) s, (0, 1))) r t M); try assumption.
  intros s Hs. apply total_derivative_is_jvp; [exact Hz | lra | apply HU, Hs].
Qed.

(** THEOREM (zero residual samples exactly). Under the same hypotheses z_r = z_t - (t - r) U(z_t, r, t).
    Source: mf:12, mf:10. *)
Theorem zero_residual_samples_exactly (z : R -> V) (U : Point -> V) (DU : R -> Point -> V) r t M :
  trajectory z -> a <= r -> r < t -> t <= b ->
  (forall s, r < s <= t -> filterdiff U (locally (z s, (r, s))) (DU s)) ->
  (forall s, r < s <= t -> residual_is_zero z U (DU s) r s) ->
  at_right r (fun s => norm (U (z s, (r, s))) <= M) ->
  z r = z t [-] (t - r) [*] U (z t, (r, t)).
Proof.
  intros Hz Hr Hrt Ht HU I B.
  rewrite (zero_residual_is_average z U DU r t M) by assumption.
  apply sampling; [exact Hz | lra | lra].
Qed.

Lemma tends_to_the_diagonal (z : R -> V) (U : Point -> V) r : trajectory z -> a <= r < b ->
  continuous U (z r, (r, r)) ->
  filterlim (fun s => U (z s, (r, s))) (at_right r) (locally (U (z r, (r, r)))).
Proof.
  intros [ode _] Hr C. assert (J : a <= r <= b) by lra.
  apply (filterlim_comp _ _ _ (fun s => (z s, (r, s)) : Point) U (at_right r) (locally (z r, (r, r) : Times)));
    [| exact C].
  intros P [e H].
  assert (Z : at_right r (fun s => ball (z r) e (z s))).
  { apply (at_right_around a b r Hr), (around_near a b r).
    apply (derive_in_continuous a b z r _ (ode r J)). exists e. auto. }
  assert (S : at_right r (fun s => ball r e s)) by (exists e; auto).
  apply (filter_imp _ (fun s => P (z s, (r, s))) (fun s HS => H (z s, (r, s)) HS)).
  generalize (filter_and _ _ Z S). apply filter_imp. intros s [H1 H2].
  split; [exact H1 |]. split; [apply ball_center | exact H2].
Qed.

Lemma bounded_near_a_limit (F : (R -> Prop) -> Prop) (u : R -> V) (l : V) : Filter F ->
  filterlim u F (locally l) -> F (fun s => norm (u s) <= norm l + 1).
Proof.
  intros FF L.
  assert (B := proj1 (filterlim_locally_ball_norm (U := N) u l) L (mkposreal 1 Rlt_0_1)).
  revert B. apply filter_imp. intros s B. unfold ball_norm in B. simpl in B.
  assert (E : u s [-] l [+] l = u s) by exact (move_left _ _ _ eq_refl).
  rewrite <- E. eapply Rle_trans; [apply (norm_triangle (V := N)) |].
  rewrite Rplus_comm. apply Rplus_le_compat; [right; reflexivity | left; exact B].
Qed.

(** Now for a whole network. Through every state x at every time t passes a trajectory, called Z x t: it is at x at
    time t. (Existence is assumed; uniqueness is not.) *)
Section Network.
Variable Z : V -> R -> R -> V.
Hypothesis Z_trajectory : forall x t, a <= t <= b -> trajectory (Z x t).
Hypothesis Z_through : forall x t, a <= t <= b -> Z x t t = x.

(** The network U: differentiable where r < t, continuous on the diagonal r = t, with zero residual at every state and
    every r < t. The loss is not looked at for r >= t. *)
Variables (U : Point -> V) (DU : V -> R -> R -> Point -> V).
Hypothesis differentiable : forall x r t, a <= r -> r < t -> t <= b ->
  filterdiff U (locally (x, (r, t))) (DU x r t).
Hypothesis zero_residual : forall x r t, a <= r -> r < t -> t <= b ->
  U (x, (r, t)) = v x t [-] (t - r) [*] DU x r t (v x t, (0, 1)).
Hypothesis continuous_on_the_diagonal : forall x r, a <= r <= b -> continuous U (x, (r, r)).

Lemma network_along (z : R -> V) r t : trajectory z -> a <= r -> r < t -> t <= b ->
  U (z t, (r, t)) = average (along z) r t.
Proof.
  intros Hz Hr Hrt Ht.
  apply (zero_residual_is_average z U (fun s => DU (z s) r s) r t (norm (U (z r, (r, r))) + 1)); try assumption.
  - intros s Hs. apply differentiable; lra.
  - intros s Hs. unfold residual_is_zero. apply zero_residual; lra.
  - apply bounded_near_a_limit; [apply at_right_proper_filter |].
    apply tends_to_the_diagonal; [exact Hz | lra | apply continuous_on_the_diagonal; lra].
Qed.

(** THEOREM (sufficiency). A continuous network with zero residual IS the average velocity: for every state x and all
    r < t, U(x, r, t) = u(x, r, t).  Source: mf:10, mf:B3, mf:3.
    Hypotheses: those of this section.
    Not said: that training reaches zero residual, or what happens near it. With conditional velocities in the target
    (mf:11) the loss has in general a positive minimum; "zero residual" is about the marginal v (mf:10). *)
Theorem network_is_the_average_velocity x r t : a <= r -> r < t -> t <= b ->
  U (x, (r, t)) = average (along (Z x t)) r t.
Proof.
  intros Hr Hrt Ht. assert (J : a <= t <= b) by lra.
  rewrite <- (Z_through x t J) at 1. apply network_along; [apply Z_trajectory, J | | |]; assumption.
Qed.

(** THEOREM (sufficiency, sampling). One step of any length with that network lands on the trajectory:
    x - (t - r) U(x, r, t) is the state at r of the trajectory that is at x at time t.  Source: mf:12. *)
Theorem network_samples_exactly x r t : a <= r -> r < t -> t <= b ->
  Z x t r = x [-] (t - r) [*] U (x, (r, t)).
Proof.
  intros Hr Hrt Ht. rewrite network_is_the_average_velocity by assumption.
  rewrite <- (Z_through x t) at 2 by lra.
  apply sampling; [apply Z_trajectory | |]; lra.
Qed.

(** THEOREM (sufficiency, diagonal). On the diagonal the same network is the velocity: U(x, t, t) = v(x, t), though the
    residual was never looked at there.  Source: mf:limit.
    Hypotheses: those of this section; t < b.
    Not said: the value at t = b, where no interval begins. *)
Theorem network_on_the_diagonal x t : a <= t < b -> U (x, (t, t)) = v x t.
Proof.
  intros Ht. assert (J : a <= t <= b) by lra. assert (Hz := Z_trajectory x t J).
  replace (v x t) with (along (Z x t) t) by (unfold along; rewrite Z_through by exact J; reflexivity).
  rewrite <- (Z_through x t J) at 1.
  apply (filterlim_locally_unique (K := R_AbsRing) (V := N) (F := at_right t) (fun s => U (Z x t s, (t, s)))).
  - apply tends_to_the_diagonal; [exact Hz | exact Ht | apply continuous_on_the_diagonal, J].
  - apply (filterlim_ext_loc (fun s => average (along (Z x t)) t s)).
    + assert (Hp : 0 < b - t) by lra. exists (mkposreal _ Hp). intros s Hs L.
      assert (B : Rabs (s - t) < b - t) by exact Hs. generalize (Rle_abs (s - t)). intro.
      symmetry. apply network_along; [exact Hz | | |]; lra.
    + intros P HP. apply (at_right_around a b t Ht).
      exact (limit_end_to_start a b (along (Z x t)) lifetime (proj2 Hz) t J P HP).
Qed.
End Network.
End Field.

(** ** 6. One step between noise and data: lifetime [0, 1] *)

Section OneStep.
Context {V : CompleteNormedModule R_AbsRing}.
Variables (v : V -> R -> V) (z : R -> V).
Hypothesis z_trajectory : trajectory 0 1 v z.

(** THEOREM (one step to data). z_0 = z_1 - u(z_1, 0, 1).  Source: mf:12.
    Hypotheses: z is a trajectory on [0, 1]. *)
Theorem one_step : z 0 = z 1 [-] average (along v z) 0 1.
Proof.
  rewrite (sampling 0 1 v Rlt_0_1 z 0 1 z_trajectory) by lra.
  apply f_equal. rewrite Rminus_0_r. exact (scal_R_one _).
Qed.

(** THEOREM (one step to noise). z_1 = z_0 + u(z_0, r = 1, t = 0): the field is read at the state it starts from, with
    that state's time as the SECOND time. Along the trajectory u(z_0, 1, 0) and u(z_1, 0, 1) are the same vector.
    Source: mf:12.
    Not said: z_0 + u(z_0, 0, 1); that is wrong, see [refuted_start_point_sampler]. *)
Theorem one_step_forward : z 1 = z 0 [+] average (along v z) 1 0.
Proof.
  rewrite (sampling 0 1 v Rlt_0_1 z 1 0 z_trajectory) by lra.
  unfold minus. apply f_equal. replace (0 - 1) with (- (1)) by ring.
  transitivity (opp (opp (average (along v z) 1 0))); [| exact (opp_opp _)].
  apply f_equal. transitivity (opp (1 [*] average (along v z) 1 0)); [exact (scal_R_opp _ _) |].
  apply f_equal. exact (scal_R_one _).
Qed.
End OneStep.

(** ** 7. Conditional paths z_t = alpha_t x + sigma_t eps *)

Section Paths.
Context {V : CompleteNormedModule R_AbsRing}.
Variables (a b : R) (alpha sigma alpha_dot sigma_dot : R -> R) (x eps : V).
Hypothesis lifetime : a < b.
Hypothesis alpha_derivative : forall t, a <= t <= b -> is_derive alpha t (alpha_dot t).
Hypothesis sigma_derivative : forall t, a <= t <= b -> is_derive sigma t (sigma_dot t).
Hypothesis alpha_dot_continuous : forall t, a <= t <= b -> continuous alpha_dot t.
Hypothesis sigma_dot_continuous : forall t, a <= t <= b -> continuous sigma_dot t.
Let path (t : R) : V := alpha t [*] x [+] sigma t [*] eps.
Let path_velocity (_ : V) (t : R) : V := alpha_dot t [*] x [+] sigma_dot t [*] eps.

Lemma path_is_trajectory : trajectory a b path_velocity path.
Proof.
  split; intros t Ht.
  - apply derive_in_of_derive; [exact Ht |].
    apply (is_derive_plus (fun s => alpha s [*] x) (fun s => sigma s [*] eps)).
    + apply (is_derive_scal_l alpha t (alpha_dot t) x), alpha_derivative, Ht.
    + apply (is_derive_scal_l sigma t (sigma_dot t) eps), sigma_derivative, Ht.
  - apply continuous_in_of_continuous.
    apply (continuous_plus (fun s => alpha_dot s [*] x) (fun s => sigma_dot s [*] eps)).
    + exact (continuous_scal_l (V := CompleteNormedModule.NormedModule R_AbsRing V)
               alpha_dot x t (alpha_dot_continuous t Ht)).
    + exact (continuous_scal_l (V := CompleteNormedModule.NormedModule R_AbsRing V)
               sigma_dot eps t (sigma_dot_continuous t Ht)).
Qed.

(** THEOREM (any schedule). The conditional velocity alpha' x + sigma' eps, averaged over [r, t], has divided
    differences in the place of the derivatives:
    (t - r) average = (alpha_t - alpha_r) x + (sigma_t - sigma_r) eps.  Source: fm:path, fm:conditional-velocity, mf:4.
    Hypotheses: alpha and sigma continuously differentiable at every time of [a, b].
    Not said: anything about the marginal velocity, of which MeanFlow's u is the average; a schedule with an infinite
    derivative at an end (variance preserving at t = 0) is covered on every segment that leaves that end out. *)
Theorem conditional_average r t : a <= r <= b -> a <= t <= b ->
  (t - r) [*] average (fun s => alpha_dot s [*] x [+] sigma_dot s [*] eps) r t =
  (alpha t - alpha r) [*] x [+] (sigma t - sigma r) [*] eps.
Proof.
  intros Hr Ht.
  transitivity (path t [-] path r).
  - exact (displacement_of_the_state a b path_velocity lifetime path r t path_is_trajectory Hr Ht).
  - unfold path, minus. rewrite opp_plus.
    assert (D : forall k l (y : V), k [*] y [+] opp (l [*] y) = (k - l) [*] y).
    { intros k l y. symmetry. exact (scal_minus_distr_r k l y). }
    rewrite <- !D, <- !plus_assoc. apply f_equal.
    rewrite plus_assoc, (plus_comm (sigma t [*] eps)), <- plus_assoc. reflexivity.
Qed.
End Paths.

(** THEOREM (linear path). On z_t = (1 - t) x + t eps the conditional velocity eps - x is its own average.
    Source: fm:conditional-velocity, mf:3.
    Hypotheses: r <> t.
    Not said: that u = v. Averages of the marginal velocity differ from it: see [refuted_wrong_sign], where u = 1/2 and
    v = 1. *)
Theorem linear_path {V : CompleteNormedModule R_AbsRing} (x eps : V) r t : t <> r ->
  average (fun _ => eps [-] x) r t = eps [-] x.
Proof.
  intro Ne. unfold average. rewrite RInt_const.
  apply (scal_inverse_l (V := CompleteNormedModule.ModuleSpace _ V)). lra.
Qed.

(** ** 8. Refutations: three plausible statements that are false, each on the real line *)

Local Notation line := R_CompleteNormedModule.

Ltac on_the_line := unfold minus, plus, opp, scal, zero in *; simpl in *; unfold mult in *; simpl in *.

Lemma average_of_time : average (V := line) (fun s => s) 0 1 = 1 / 2.
Proof.
  unfold average. rewrite (is_RInt_unique (V := line) (fun s : R => s) 0 1 (1 / 2)); [on_the_line; field |].
  replace (1 / 2) with (minus (1 * 1 / 2) (0 * 0 / 2)) by (on_the_line; field).
  apply (is_RInt_derive (V := line) (fun s => s * s / 2) (fun s => s)); intros s _.
  - auto_derive; [trivial | field].
  - apply continuous_id.
Qed.

(** REFUTED: "u = v + (t - r) du/dt".  Source: mf:6 with the wrong sign.
    Witness: w(t) = t, r = 0, t = 1. Then u = 1/2 and v = 1, so that du/dt = 1/2 by the right identity and -1/2 by the
    wrong one. *)
Theorem refuted_wrong_sign :
  ~ (forall w : R -> line, (forall t, 0 <= t <= 1 -> continuous_in 0 1 w t) ->
     forall r t (du : line), 0 <= r <= 1 -> 0 <= t <= 1 -> t <> r ->
     is_derive_in 0 1 (fun s => average w r s) t du ->
     average w r t = w t [+] (t - r) [*] du).
Proof.
  intro H. pose (w := (fun s => s) : R -> line).
  assert (C : forall t, 0 <= t <= 1 -> continuous_in 0 1 w t)
    by (intros t _; apply continuous_in_of_continuous, continuous_id).
  destruct (average_is_differentiable 0 1 w Rlt_0_1 C 0 1) as [du D]; try lra.
  assert (true_sign := meanflow_identity 0 1 w Rlt_0_1 C 0 1 du ltac:(lra) ltac:(lra) D).
  assert (false_sign := H w C 0 1 du ltac:(lra) ltac:(lra) ltac:(lra) D).
  unfold w in *. rewrite average_of_time in *. on_the_line. lra.
Qed.

(** REFUTED: "every solution of the identity on 0 < s <= 1 is the average velocity".  Source: mf:B3 without S -> 0.
    Witness: w = 0 and u(s) = 1/s, for which s u(s) = 1 does not tend to 0. u(1) = 1, and the average is 0. *)
Theorem refuted_converse_without_a_bound :
  ~ (forall (w u du : R -> line), (forall t, 0 <= t <= 1 -> continuous_in 0 1 w t) ->
     (forall s, 0 < s <= 1 -> is_derive_in 0 1 u s (du s)) ->
     (forall s, 0 < s <= 1 -> u s = w s [-] (s - 0) [*] du s) ->
     u 1 = average w 0 1).
Proof.
  intro H.
  assert (E : / 1 = average (V := line) (fun _ => 0) 0 1).
  { apply (H (fun _ => 0) (fun s => / s) (fun s => - / (s * s))).
    - intros t _. apply continuous_in_of_continuous, continuous_const.
    - intros s Hs. apply derive_in_of_derive; [lra |]. auto_derive; [lra | field; lra].
    - intros s Hs. on_the_line. field. lra. }
  unfold average in E. rewrite RInt_const in E. on_the_line. lra.
Qed.

(** The field v(x, t) = lam x, its trajectory through c at time 0, and its average velocity. *)
Section StartPoint.
Variables (lam c : R).
Hypothesis lam_nonzero : lam <> 0.
Hypothesis c_nonzero : c <> 0.
Definition linear_field (x : R) (_ : R) : R := lam * x.
Definition linear_state (t : R) : R := c * exp (lam * t).
Definition linear_average (x : R) (r t : R) : R := x * (1 - exp (- (lam * (t - r)))) / (t - r).

Lemma linear_trajectory : trajectory (V := line) 0 1 linear_field linear_state.
Proof.
  split; intros t Ht.
  - apply derive_in_of_derive; [exact Ht |]. unfold linear_state, linear_field.
    auto_derive; [trivial | ring].
  - apply continuous_in_of_continuous.
    apply (ex_derive_continuous (V := R_NormedModule) (fun s => lam * (c * exp (lam * s)))).
    auto_derive. trivial.
Qed.

(** THEOREM (linear field). u(x, r, t) = x (1 - exp(-lam (t - r))) / (t - r) is the average velocity of v = lam x, read
    at the state of the SECOND time, along every trajectory c exp(lam t).  Source: mf:3. *)
Theorem linear_average_is_average r t : 0 <= r <= 1 -> 0 <= t <= 1 -> t <> r ->
  linear_average (linear_state t) r t = average (V := line) (along (V := line) linear_field linear_state) r t.
Proof.
  intros Hr Ht Ne.
  assert (D := displacement_of_the_state (V := line) 0 1 linear_field Rlt_0_1 linear_state r t
                 linear_trajectory Hr Ht).
  set (u := average (V := line) (along (V := line) linear_field linear_state) r t) in *.
  unfold linear_average, linear_state in *.
  on_the_line.
  assert (E : exp (lam * t) * exp (- (lam * (t - r))) = exp (lam * r)) by (rewrite <- exp_plus; f_equal; ring).
  apply (Rmult_eq_reg_l (t - r)); [| lra]. rewrite D.
  transitivity (c * (exp (lam * t) - exp (lam * t) * exp (- (lam * (t - r))))); [field; lra |].
  rewrite E. ring.
Qed.

(** REFUTED: "z_1 = z_0 + u(z_0, 0, 1)" for a field u of the state at the LATER time, as mf:6 trains it.
    Source: mf:12 read at the wrong end.
    For every lam <> 0 and c <> 0 the wrong step gives (2 - exp(-lam)) c, the truth is exp(lam) c, they differ, and
    z_0 + u(z_0, 1, 0), with the times exchanged, is right. *)
Theorem refuted_start_point_sampler :
  linear_state 0 + linear_average (linear_state 0) 0 1 = (2 - exp (- lam)) * c /\
  linear_state 1 = exp lam * c /\
  linear_state 0 + linear_average (linear_state 0) 0 1 <> linear_state 1 /\
  linear_state 1 = linear_state 0 + linear_average (linear_state 0) 1 0.
Proof.
  assert (S0 : linear_state 0 = c) by (unfold linear_state; rewrite Rmult_0_r, exp_0; ring).
  assert (S1 : linear_state 1 = exp lam * c) by (unfold linear_state; rewrite Rmult_1_r; ring).
  assert (W : linear_state 0 + linear_average (linear_state 0) 0 1 = (2 - exp (- lam)) * c).
  { rewrite S0. unfold linear_average. replace (lam * (1 - 0)) with lam by ring. field. }
  split; [exact W |]. split; [exact S1 |]. split.
  - rewrite W, S1. intro E. apply Rmult_eq_reg_r in E; [| exact c_nonzero].
    assert (N1 : - lam <> 0) by lra.
    generalize (exp_ineq1 lam lam_nonzero) (exp_ineq1 (- lam) N1). lra.
  - rewrite S0, S1. unfold linear_average. replace (- (lam * (0 - 1))) with lam by ring. field.
Qed.
End StartPoint.

(** ** 9. The hypotheses on a network can be met *)

(** THEOREM (not vacuous). The hypotheses of the three [network_...] theorems are met in every V, for every a and b, by
    the constant field v = k, its straight trajectories and the network U = k. So these theorems are not true merely
    because nothing satisfies them.  Source: mf:10.
    Not said: which other fields have such a network. *)
Theorem network_hypotheses_can_be_met {V : CompleteNormedModule R_AbsRing} (a b : R) (k : V) :
  let v := fun (_ : V) (_ : R) => k in
  let Z := fun (x : V) (t s : R) => x [+] (s - t) [*] k in
  let U := fun _ : prod_NormedModule R_AbsRing (CompleteNormedModule.NormedModule R_AbsRing V)
                     (prod_NormedModule R_AbsRing R_NormedModule R_NormedModule) => k in
  (forall x t, a <= t <= b -> trajectory a b v (Z x t)) /\
  (forall x t, a <= t <= b -> Z x t t = x) /\
  (forall x (r t : R), filterdiff U (locally (x, (r, t))) (fun _ => zero)) /\
  (forall r t : R, k = k [-] (t - r) [*] zero) /\
  (forall x (r : R), continuous U (x, (r, r))).
Proof.
  pose (N := CompleteNormedModule.NormedModule R_AbsRing V).
  intros v Z U. split; [| split; [| split; [| split]]].
  - intros x t _. split; intros s Hs.
    + assert (E : zero [+] 1 [*] k = k) by (transitivity (1 [*] k); [exact (plus_zero_l _) | exact (scal_R_one k)]).
      apply (derive_in_value a b (Z x t) s _ k E), derive_in_of_derive; [exact Hs |].
      apply (is_derive_plus (V := N) (fun _ => x) (fun p => (p - t) [*] k)).
      * apply (is_derive_const (V := N)).
      * apply (is_derive_scal_l (V := N) (fun p => p - t) s 1 k). auto_derive; [trivial | ring].
    + apply continuous_in_of_continuous, (continuous_const (V := N)).
  - intros x t _. unfold Z. rewrite Rminus_diag_eq by reflexivity.
    transitivity (x [+] zero); [apply f_equal; exact (scal_R_zero k) | exact (plus_zero_r x)].
  - intros x r t. apply filterdiff_const.
  - intros r t. symmetry.
    transitivity (k [-] zero); [apply f_equal; exact (scal_zero_r (t - r)) | exact (minus_zero_r k)].
  - intros x r. apply continuous_const.
Qed.
